"""Be more like the better ones of several answers to a prompt (GRPO; Shao et al., arXiv 2402.03300, eq. 3 and 4).

    ratio_t = p(token) / p_old(token)          A = (score - mean of the group) / its deviation
    -min(ratio_t A, clip(ratio_t, 1 - e, 1 + e) A) + kl_coef (q_t - log q_t - 1),   q_t = p_ref(token) / p(token)

Each answer weighs the same whatever its length (`grpo`), or each token (`dapo`; Yu et al., arXiv 2503.14476, eq. 8).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trefoil.training.batch import scored_labels
from trefoil.training.examples import Example
from trefoil.training.loop import Loss
from trefoil.training.practice import Tried
from trefoil_models.checkpoint import Model

LEAST_DEVIATION = 1e-4


@dataclass(frozen=True, slots=True)
class Graded:
    """An answer, how much better than its group it is, and log p of its tokens before and by the reference."""

    example: Example
    advantage: float
    old_R: Tensor
    reference_R: Tensor

    def __len__(self) -> int:
        return len(self.example)


@dataclass(frozen=True, slots=True)
class Grpo:
    """The loss of graded answers, and their grades."""

    num_answers: int = 8
    clip_range: float = 0.2
    kl_coef: float = 0.04
    temperature: float = 1.0
    loss_type: str = "grpo"
    scale_rewards: bool = True

    @property
    def own(self) -> Mapping[str, nn.Parameter]:
        return {}

    def credit(self, tried: Sequence[Tried]) -> list[Graded]:
        scores_NG = torch.tensor([one.score for one in tried]).view(-1, self.num_answers)
        advantages = group_advantages(scores_NG, scaled=self.scale_rewards).flatten().tolist()
        return [
            Graded(one.example, advantage, one.logprobs_R, one.reference_R)
            for one, advantage in zip(tried, advantages, strict=True)
        ]

    def __call__(self, model: Model, graded: Sequence[Graded]) -> Loss:
        labels = scored_labels(model, [one.example for one in graded], temperature=self.temperature)
        old_R, reference_R = (
            torch.cat(parts) for parts in zip(*((g.old_R, g.reference_R) for g in graded), strict=True)
        )
        lens_N = torch.tensor(labels.lens, device=old_R.device)
        advantages_N = torch.tensor([one.advantage for one in graded], device=old_R.device)
        advantages_R = advantages_N.repeat_interleave(lens_N)
        is_alike = self.loss_type == "dapo"
        shares_R = torch.ones_like(old_R) if is_alike else (1 / lens_N).repeat_interleave(lens_N)
        policy_R, is_clipped_R = clipped_loss(labels.logprobs_R - old_R, advantages_R, clip_range=self.clip_range)
        loss_R = policy_R + self.kl_coef * reference_distance(labels.logprobs_R, reference_R)
        sums = {
            "policy_loss": (policy_R.detach() * shares_R).sum(),
            "clip_fraction": (is_clipped_R * shares_R).sum(),
        }
        return Loss((loss_R * shares_R).sum(), len(old_R) if is_alike else len(graded), sums)


def group_advantages(scores_NG: Tensor, *, scaled: bool) -> Tensor:
    """How much better than its group's mean each score is, in the group's deviations where `scaled`."""
    gains_NG = scores_NG - scores_NG.mean(1, keepdim=True)
    return gains_NG / (scores_NG.std(1, keepdim=True) + LEAST_DEVIATION) if scaled else gains_NG


def clipped_loss(log_ratio_R: Tensor, advantages_R: Tensor, *, clip_range: float) -> tuple[Tensor, Tensor]:
    """PPO's surrogate per token (Schulman et al., arXiv 1707.06347, eq. 7), and where clipping stops the gradient."""
    ratio_R = log_ratio_R.exp()
    free_R = -ratio_R * advantages_R
    held_R = -ratio_R.clamp(1 - clip_range, 1 + clip_range) * advantages_R
    return torch.maximum(free_R, held_R), held_R > free_R


def reference_distance(logprobs_R: Tensor, reference_R: Tensor) -> Tensor:
    """An estimate of KL(policy, reference) per token that is never negative (eq. 4)."""
    log_ratio_R = reference_R - logprobs_R
    return log_ratio_R.exp() - log_ratio_R - 1
