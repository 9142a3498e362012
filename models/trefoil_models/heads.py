"""From hidden rows to answers: which heads a folder has, and what they are built of.

A model returns hidden rows; the caller picks rows and asks a head. A head is known by what it tells of a row: the
`next` token, the `mask`ed token, the `class` of a text, the `tag` of a token, the `span` that answers, whether a `pair`
belongs together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trefoil_kernels.linear import linear
from trefoil_kernels.token_logprobs import scored_labels, token_logprobs
from trefoil_models.config_keys import CheckpointError

Head = Callable[[Tensor], Tensor]
"""Hidden rows [R, M] to scores [R, width]."""

HEADS_OF_CLASSES = {
    "ForMaskedLM": ("mask",),
    "ForPreTraining": ("mask", "pair"),
    "ForNextSentencePrediction": ("pair",),
    "ForSequenceClassification": ("class",),
    "ForTokenClassification": ("tag",),
    "ForQuestionAnswering": ("span",),
    "Model": (),
}
"""What transformers' class names ask of an encoder, by their ends."""
CLASSIFYING_DECODERS = ("ForSequenceClassification", "ForRewardModel")


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of a folder; `is_tied`: scores over the vocabulary come from the input embedding."""

    names: frozenset[str] = frozenset({"next"})
    is_tied: bool = True
    num_labels: int = 2

    def __contains__(self, name: str) -> bool:
        return name in self.names


def asked_heads(architectures: list[str], kind: str) -> frozenset[str]:
    """The heads that the `architectures` of a config.json promise. Raises CheckpointError for a class nobody serves."""
    if kind != "encoder":
        is_classifier = any(name.endswith(CLASSIFYING_DECODERS) for name in architectures)
        return frozenset({"class"} if is_classifier else {"next"})
    heads: set[str] = set()
    for name in architectures:
        end = next((end for end in HEADS_OF_CLASSES if name.endswith(end)), None)
        if end is None:
            raise CheckpointError(f"config.json: architectures names {name}, which is not implemented")
        heads.update(HEADS_OF_CLASSES[end])
    return frozenset(heads)


class NextToken(nn.Module):
    """Scores of every vocabulary entry for the token after each row; its matrix may be the input embedding's.

    BART adds a bias, [1, V].
    """

    weight: nn.Parameter

    def __init__(self, weight_VM: nn.Parameter, bias_1V: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight, self.bias = weight_VM, bias_1V

    @property
    def matrix(self) -> Tensor:
        """What rows are multiplied by, [V, M]."""
        return self.weight

    def logits(self, hidden_RM: Tensor) -> Tensor:
        """[R, V] in the model's dtype."""
        return linear(hidden_RM, self.matrix, None if self.bias is None else self.bias[0])

    def logprobs(self, hidden_RM: Tensor, labels_R: Tensor) -> Tensor:
        """log p(label) per row, float32 [R], without keeping the logits."""
        return token_logprobs(*self._without_bias(hidden_RM), labels_R)

    def scored(self, hidden_RM: Tensor, labels_R: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """log p(label) per row, of logits over the temperature, and whether no other entry is likelier, bool [R]."""
        rows_RM, matrix_VM = self._without_bias(hidden_RM)
        return scored_labels(rows_RM if temperature == 1 else rows_RM / temperature, matrix_VM, labels_R)

    def mean_logprobs(self, hidden_RM: Tensor, labels_R: Tensor, logprobs_R: Tensor) -> Tensor:
        """The mean over the vocabulary of log p, [R], from the labels' own: mean_v z_v - lse, and lse = z_y - log p_y.

        A mean of logits is the logit of the mean row, so no row's logits are needed.
        """
        rows_RM, matrix_VM = self._without_bias(hidden_RM)
        from_label_RM = matrix_VM.float().mean(0) - matrix_VM[labels_R].float()
        return (rows_RM.float() * from_label_RM).sum(-1) + logprobs_R

    def _without_bias(self, hidden_RM: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and matrix that give the same logits: a column of ones meets the bias as one more column."""
        if self.bias is None:
            return hidden_RM, self.matrix
        rows_RM = torch.cat([hidden_RM, torch.ones_like(hidden_RM[:, :1])], 1)
        return rows_RM, torch.cat([self.matrix, self.bias.T], 1)


class NormHead(NextToken):
    """Baichuan 2's: each row of the matrix is brought to unit length, also while the weight learns."""

    @property
    def matrix(self) -> Tensor:
        return F.normalize(self.weight)
