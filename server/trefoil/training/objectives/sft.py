"""Learn to answer: the likelihood of the assistant's words, given the chat (Ouyang et al., arXiv 2203.02155).

Which ids are the assistant's words is the example's to say (`data.chat_example`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from trefoil.training.batch import Example, scored_labels
from trefoil.training.loop import Loss
from trefoil_models.checkpoint import Model


def sft_loss(logprobs_R: Tensor) -> Tensor:
    """-sum of log p over the answers' tokens; every token weighs the same, whatever the length of its answer."""
    return -logprobs_R.sum()


def smoothed_loss(logprobs_R: Tensor, mean_logprobs_R: Tensor, *, smoothing: float) -> Tensor:
    """The label gets 1 - smoothing of the target, the rest is spread evenly (Szegedy et al., arXiv 1512.00567)."""
    return -((1 - smoothing) * logprobs_R + smoothing * mean_logprobs_R).sum()


@dataclass(frozen=True, slots=True)
class Sft:
    """The loss of chats, whose labels are the answers with the token that ends each."""

    label_smoothing: float = 0.0

    def __call__(self, model: Model, examples: Sequence[Example]) -> Loss:
        labels = scored_labels(model, examples)
        hits = {"mean_token_accuracy": labels.is_top_R.sum()}
        return Loss(self._total(model, labels.hidden_RM, labels.ids_R, labels.logprobs_R), len(labels.ids_R), hits)

    def _total(self, model: Model, hidden_RM: Tensor, ids_R: Tensor, logprobs_R: Tensor) -> Tensor:
        if not self.label_smoothing:
            return sft_loss(logprobs_R)
        mean_logprobs_R = model.lm_head.mean_logprobs(hidden_RM, ids_R, logprobs_R)
        return smoothed_loss(logprobs_R, mean_logprobs_R, smoothing=self.label_smoothing)
