"""Learn from what each token of an answer is worth (Ouyang et al., arXiv 2203.02155, section 3.5; Schulman et al.,
arXiv 1707.06347).

A token costs kl_coef times its log-ratio to the reference, the last one earns the answer's score. A value head on the
policy's own rows guesses what is still to come; how much better than guessed it came is the token's advantage (GAE,
arXiv 1506.02438, eq. 16), made unit over the batch:

    A_t = d_t + gamma lambda A_(t+1),   d_t = r_t + gamma V_(t+1) - V_t
    max(-ratio A, -clip(ratio) A) + value_coef max((V - R)^2, (V_clipped - R)^2) / 2,   R_t = A_t + V_old
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trefoil.training.batch import scored_labels
from trefoil.training.examples import Example
from trefoil.training.loop import Loss
from trefoil.training.objectives.grpo import clipped_loss
from trefoil.training.practice import Tried
from trefoil_models.checkpoint import Model

LEAST_VARIANCE = 1e-8


class ValueHead(nn.Linear):
    """What is still to come after a row, [R]; nothing is expected at first."""

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__(width, 1, device=device)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden_RM: Tensor) -> Tensor:
        return super().forward(hidden_RM.float())[:, 0]


@dataclass(frozen=True, slots=True)
class Valued:
    """An answer; of its tokens the advantage, what the value head said, what came, and log p before."""

    example: Example
    advantages_R: Tensor
    values_R: Tensor
    returns_R: Tensor
    old_R: Tensor

    def __len__(self) -> int:
        return len(self.example)


@dataclass(frozen=True, slots=True)
class Ppo:
    """The loss of valued answers, and their values."""

    value: ValueHead
    clip_range: float = 0.2
    kl_coef: float = 0.05
    temperature: float = 1.0
    value_coef: float = 0.1
    value_clip_range: float = 0.2
    gamma: float = 1.0
    gae_lambda: float = 0.95
    num_answers: int = 1

    @property
    def own(self) -> Mapping[str, nn.Parameter]:
        return {f"value_head.{name}": parameter for name, parameter in self.value.named_parameters()}

    @torch.no_grad()
    def credit(self, tried: Sequence[Tried]) -> list[Valued]:
        values = [self.value(one.hidden_RM) for one in tried]
        advantages = [
            gae(self._rewards(one), values_R, gamma=self.gamma, gae_lambda=self.gae_lambda)
            for one, values_R in zip(tried, values, strict=True)
        ]
        lens = [len(values_R) for values_R in values]
        unit = torch.split(whitened(torch.cat(advantages)), lens)
        return [
            Valued(one.example, unit_R, values_R, advantages_R + values_R, one.logprobs_R)
            for one, unit_R, values_R, advantages_R in zip(tried, unit, values, advantages, strict=True)
        ]

    def __call__(self, model: Model, valued: Sequence[Valued]) -> Loss:
        labels = scored_labels(model, [one.example for one in valued], temperature=self.temperature)
        parts = ((v.advantages_R, v.values_R, v.returns_R, v.old_R) for v in valued)
        advantages_R, values_R, returns_R, old_R = (torch.cat(part) for part in zip(*parts, strict=True))
        policy_R, is_clipped_R = clipped_loss(labels.logprobs_R - old_R, advantages_R, clip_range=self.clip_range)
        value_R = value_loss(self.value(labels.hidden_RM), values_R, returns_R, clip_range=self.value_clip_range)
        sums = {
            "policy_loss": policy_R.detach().sum(),
            "value_loss": value_R.detach().sum(),
            "clip_fraction": is_clipped_R.sum(),
        }
        return Loss((policy_R + self.value_coef * value_R).sum(), len(old_R), sums)

    def _rewards(self, one: Tried) -> Tensor:
        rewards_R = -self.kl_coef * (one.logprobs_R - one.reference_R)
        rewards_R[-1] += one.score
        return rewards_R


def gae(rewards_R: Tensor, values_R: Tensor, *, gamma: float, gae_lambda: float) -> Tensor:
    """Advantages of one answer's tokens; nothing comes after the last."""
    advantages, later, value_after = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards_R.tolist()), reversed(values_R.tolist()), strict=True):
        later = reward + gamma * value_after - value + gamma * gae_lambda * later
        value_after = value
        advantages.append(later)
    return torch.tensor(advantages[::-1], device=rewards_R.device)


def whitened(values_R: Tensor) -> Tensor:
    """Mean 0 and variance 1, where there are two or more."""
    centred_R = values_R - values_R.mean()
    return centred_R * torch.rsqrt(centred_R.square().sum() / max(len(values_R) - 1, 1) + LEAST_VARIANCE)


def value_loss(values_R: Tensor, old_R: Tensor, returns_R: Tensor, *, clip_range: float) -> Tensor:
    """Half the squared error per token, or that of the value held near the old one, whichever is worse."""
    held_R = values_R.clamp(old_R - clip_range, old_R + clip_range)
    return torch.maximum((values_R - returns_R).square(), (held_R - returns_R).square()) / 2
