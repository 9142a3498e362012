"""Learn to answer: the likelihood of the assistant's words, given the chat (Ouyang et al., arXiv 2203.02155).

Which ids are the assistant's words is the example's to say (`data.chat_example`).
"""

from collections.abc import Sequence

from torch import Tensor

from trefoil.training.batch import Example, label_logprobs
from trefoil.training.loop import Loss
from trefoil_models.checkpoint import Model


def sft_loss(answer_logprobs_R: Tensor) -> Tensor:
    """-sum of log p over the answers' tokens; every token weighs the same, whatever the length of its answer."""
    return -answer_logprobs_R.sum()


def sft(model: Model, examples: Sequence[Example]) -> Loss:
    """The loss of chats, whose labels are the answers with the token that ends each."""
    answer_logprobs_R = label_logprobs(model, examples)
    return Loss(sft_loss(answer_logprobs_R), len(answer_logprobs_R))
