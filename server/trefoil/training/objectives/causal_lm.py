"""Predict every next token of plain text (Radford et al., "Improving Language Understanding", 2018, eq. 1)."""

from collections.abc import Sequence

from torch import Tensor

from trefoil.training.batch import Example, label_logprobs
from trefoil.training.loop import Loss
from trefoil_models.checkpoint import Model


def causal_lm_loss(logprobs_R: Tensor) -> Tensor:
    """-sum of log p(token | those before); the loop divides by how many there were."""
    return -logprobs_R.sum()


def causal_lm(model: Model, examples: Sequence[Example]) -> Loss:
    """The loss of windows of text, whose labels are all ids but the first."""
    logprobs_R = label_logprobs(model, examples)
    return Loss(causal_lm_loss(logprobs_R), len(logprobs_R))
