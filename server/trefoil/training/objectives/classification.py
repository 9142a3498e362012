"""Say what a whole text is: one class (Devlin et al., arXiv 1810.04805, 4.1), several, or a number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trefoil.training.examples import Reading
from trefoil.training.loop import Loss
from trefoil.training.reading import reading_rows, text_rows
from trefoil_models.checkpoint import Model


def one_of(logits_NC: Tensor, labels_NL: Tensor) -> Tensor:
    """-log softmax of the class that each text has."""
    return F.cross_entropy(logits_NC, labels_NL[:, 0].long(), reduction="sum")


def any_of(logits_NC: Tensor, labels_NC: Tensor) -> Tensor:
    """-log sigmoid of every class a text has and of 1 - that of every other, the mean over classes."""
    return F.binary_cross_entropy_with_logits(logits_NC, labels_NC, reduction="none").mean(1).sum()


def number(logits_N1: Tensor, labels_N1: Tensor) -> Tensor:
    """The squared error."""
    return F.mse_loss(logits_N1, labels_N1, reduction="sum")


PROBLEMS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "single_label_classification": one_of,
    "multi_label_classification": any_of,
    "regression": number,
}
"""By transformers' names for them."""


@dataclass(frozen=True, slots=True)
class Classification:
    """The loss of texts with a label each, by the kind of problem."""

    problem_type: str = "single_label_classification"

    def __call__(self, model: Model, readings: Sequence[Reading]) -> Loss:
        rows, attend = reading_rows(model, readings)
        hidden_TM: Tensor = model(rows, attend)
        logits_NC = model.heads["class"](hidden_TM[text_rows(model, attend.packing)]).float()
        labels_NL = torch.tensor([one.labels for one in readings], dtype=torch.float32, device=logits_NC.device)
        sums = {}
        if self.problem_type == "single_label_classification":
            sums = {"mean_accuracy": (logits_NC.argmax(1) == labels_NL[:, 0]).sum()}
        return Loss(PROBLEMS[self.problem_type](logits_NC, labels_NL), len(readings), sums)


classification = Classification()
"""One class each."""
