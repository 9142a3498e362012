"""Prefer one answer to another without a reward model (Rafailov et al., arXiv 2305.18290), and two kin of it.

The reference's log-probabilities come with the pairs: `with_reference` asks the model for them before it changes, so
no second copy of it is ever needed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from trefoil.training.batch import plan_epoch, scored_labels
from trefoil.training.examples import Pair
from trefoil.training.loop import Loss
from trefoil_models.checkpoint import Model


def sigmoid_loss(margin_N: Tensor, *, beta: float, smoothing: float) -> Tensor:
    """-log sigmoid(beta margin); `smoothing` is how often the label is believed to be the wrong way round (cDPO)."""
    return -(1 - smoothing) * F.logsigmoid(beta * margin_N) - smoothing * F.logsigmoid(-beta * margin_N)


def hinge_loss(margin_N: Tensor, *, beta: float, smoothing: float) -> Tensor:
    """max(0, 1 - beta margin) (SLiC, arXiv 2305.10425)."""
    return (1 - smoothing) * torch.relu(1 - beta * margin_N) + smoothing * torch.relu(1 + beta * margin_N)


def ipo_loss(margin_N: Tensor, *, beta: float, smoothing: float) -> Tensor:
    """(margin - 1 / 2 beta)^2, the margin being a mean over tokens (Azar et al., arXiv 2310.12036, eq. 17)."""
    target = 1 / (2 * beta)
    return (1 - smoothing) * (margin_N - target) ** 2 + smoothing * (margin_N + target) ** 2


LOSSES: Mapping[str, Callable[..., Tensor]] = {"sigmoid": sigmoid_loss, "hinge": hinge_loss, "ipo": ipo_loss}


@dataclass(frozen=True, slots=True)
class Dpo:
    """The loss of pairs. The margin is how much more than the reference the model prefers the chosen answer."""

    beta: float = 0.1
    loss_type: str = "sigmoid"
    label_smoothing: float = 0.0
    length_normalized: bool = False

    def __call__(self, model: Model, pairs: Sequence[Pair]) -> Loss:
        labels = scored_labels(model, [example for pair in pairs for example in pair])
        logprobs_N2 = labels.sums().view(-1, 2)
        refs = [(pair.ref_chosen, pair.ref_rejected) for pair in pairs]
        gains_N2 = logprobs_N2 - torch.tensor(refs, device=logprobs_N2.device)  # how much likelier than before
        scores_N2 = gains_N2
        if self.length_normalized or self.loss_type == "ipo":
            scores_N2 = gains_N2 / torch.tensor(labels.lens, device=gains_N2.device).view(-1, 2)
        margin_N = scores_N2[:, 0] - scores_N2[:, 1]
        loss_N = LOSSES[self.loss_type](margin_N, beta=self.beta, smoothing=self.label_smoothing)
        return Loss(loss_N.sum(), len(pairs), self._rewards(gains_N2.detach()))

    def _rewards(self, gains_N2: Tensor) -> dict[str, Tensor]:
        """Sums over the pairs of what the literature plots."""
        chosen_N, rejected_N = (self.beta * gains_N2).unbind(1)
        return {
            "rewards/chosen": chosen_N.sum(),
            "rewards/rejected": rejected_N.sum(),
            "rewards/margins": (chosen_N - rejected_N).sum(),
            "rewards/accuracies": (chosen_N > rejected_N).sum(),
        }


@torch.no_grad()
def with_reference(model: Model, pairs: Sequence[Pair], *, budget: int) -> list[Pair]:
    """The pairs with what the model, as it is now, thinks of them."""
    known = list(pairs)
    for numbers in plan_epoch([len(pair) for pair in pairs], budget, seed=0, epoch=0):
        examples = [example for number in numbers for example in pairs[number]]
        sums: list[float] = scored_labels(model, examples).sums().tolist()
        for number, chosen, rejected in zip(numbers, sums[::2], sums[1::2], strict=True):
            known[number] = replace(pairs[number], ref_chosen=chosen, ref_rejected=rejected)
    return known
