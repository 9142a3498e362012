"""Score answers as people prefer them (Bradley and Terry, 1952; Ouyang et al., arXiv 2203.02155, eq. 1)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from trefoil.training.examples import Comparison
from trefoil.training.loop import Loss
from trefoil.training.reading import reading_rows, text_rows
from trefoil_models.checkpoint import Model


def reward_loss(chosen_N: Tensor, rejected_N: Tensor) -> Tensor:
    """-log of how likely the chosen answer wins: sigmoid of what its score is above the other's; the sum."""
    return -F.logsigmoid(chosen_N - rejected_N).sum()


def reward(model: Model, comparisons: Sequence[Comparison]) -> Loss:
    """The loss of pairs, each answer scored by the class head's one output at the row that speaks for the text."""
    rows, attend = reading_rows(model, [one for pair in comparisons for one in (pair.chosen, pair.rejected)])
    hidden_TM: Tensor = model(rows, attend)
    scores_N1 = model.heads["class"](hidden_TM[text_rows(model, attend.packing)]).float()
    chosen_N, rejected_N = scores_N1.view(-1, 2).unbind(1)
    sums = {
        "rewards/chosen": chosen_N.detach().sum(),
        "rewards/rejected": rejected_N.detach().sum(),
        "rewards/margins": (chosen_N - rejected_N).detach().sum(),
        "rewards/accuracies": (chosen_N > rejected_N).sum(),
    }
    return Loss(reward_loss(chosen_N, rejected_N), len(comparisons), sums)
