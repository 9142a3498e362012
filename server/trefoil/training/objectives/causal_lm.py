"""Predict every next token of plain text (Radford et al., "Improving Language Understanding", 2018, eq. 1)."""

from collections.abc import Sequence

from torch import Tensor

from trefoil.training.batch import Example, scored_labels
from trefoil.training.loop import Loss
from trefoil_models.checkpoint import Model


def causal_lm_loss(logprobs_R: Tensor) -> Tensor:
    """-sum of log p(token | those before); the loop divides by how many there were."""
    return -logprobs_R.sum()


def causal_lm(model: Model, examples: Sequence[Example]) -> Loss:
    """The loss of windows of text, whose labels are all ids but the first."""
    labels = scored_labels(model, examples)
    return Loss(causal_lm_loss(labels.logprobs_R), len(labels.ids_R), {"mean_token_accuracy": labels.is_top_R.sum()})
