"""Which experts a row goes to, and how much each weighs: from a router's logits, float32 [T, E], to a Routing.

Each function is one published rule; ties fall as torch's topk lets them. Weights carry gradients, choices none.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-20


@dataclass(frozen=True, slots=True)
class Routing:
    """Each row's experts, int64 [T, K], all different, and their weights, float32 [T, K]."""

    experts_TK: Tensor
    weights_TK: Tensor


Route = Callable[[Tensor, Tensor | None], Routing]
"""Of logits and what is added to scores for the choice alone ([E], where a router has it)."""


@dataclass(frozen=True, slots=True)
class SoftmaxTop:
    """The K likeliest of all (Mixtral, arXiv 2401.04088, section 2; Qwen; DeepSeek-MoE, arXiv 2401.06066, eq. 9 to 11).

    `is_normalised`: their weights are made to sum to one. With `groups`, DeepSeek-V2's device-limited routing (arXiv
    2405.04434, section 2.2.2): only the `kept_groups` groups with the likeliest single expert take part.
    """

    top_k: int
    is_normalised: bool
    scale: float = 1.0
    groups: int = 1
    kept_groups: int = 1

    def __call__(self, logits_TE: Tensor, _bias_E: Tensor | None) -> Routing:
        probs_TE = logits_TE.softmax(-1)
        if self.groups > 1:
            best_TG = torch.unflatten(probs_TE, -1, (self.groups, -1)).amax(-1)
            probs_TE = probs_TE.masked_fill(~_in_best_groups(best_TG, self.kept_groups, probs_TE.shape[1]), 0.0)
        weights_TK, experts_TK = probs_TE.topk(self.top_k, -1)
        if self.is_normalised:
            weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        return Routing(experts_TK, weights_TK * self.scale if self.scale != 1 else weights_TK)


@dataclass(frozen=True, slots=True)
class SigmoidTop:
    """DeepSeek-V3's (arXiv 2412.19437, section 2.1.2): a bias steers the choice, and weighs nothing.

    A group counts by the sum of its two best; experts outside the `kept_groups` are out of the question.
    """

    top_k: int
    is_normalised: bool
    scale: float
    groups: int
    kept_groups: int

    def __call__(self, logits_TE: Tensor, bias_E: Tensor | None) -> Routing:
        scores_TE = logits_TE.sigmoid()
        choice_TE = scores_TE.detach() if bias_E is None else scores_TE.detach() + bias_E
        best_TG = torch.unflatten(choice_TE, -1, (self.groups, -1)).topk(2, -1).values.sum(-1)
        choice_TE = choice_TE.masked_fill(~_in_best_groups(best_TG, self.kept_groups, choice_TE.shape[1]), -torch.inf)
        experts_TK = choice_TE.topk(self.top_k, -1).indices
        weights_TK = scores_TE.gather(-1, experts_TK)
        if self.is_normalised:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + TINY)
        return Routing(experts_TK, weights_TK * self.scale)


def _in_best_groups(best_TG: Tensor, kept: int, num_experts: int) -> Tensor:
    """Is the expert's group one of the best? bool [T, E]."""
    is_kept_TG = torch.zeros_like(best_TG, dtype=torch.bool)
    is_kept_TG.scatter_(-1, best_TG.topk(kept, -1).indices, True)
    return is_kept_TG.repeat_interleave(num_experts // best_TG.shape[1], -1)
