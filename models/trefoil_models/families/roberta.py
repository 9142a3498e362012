"""RoBERTa (`roberta`; Liu et al., arXiv 1907.11692): bert's layers, positions that begin behind the padding's.

A text's first row has the position pad_token_id + 1. The parent of xlm_roberta.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from trefoil_kernels.gated_act import ACTIVATIONS
from trefoil_models.config_keys import Keys
from trefoil_models.families.bert import Config, Matrix, Trunk, read_bert
from trefoil_models.heads import Head, Heads
from trefoil_models.layers import LayerNorm, Linear

__all__ = ["Config", "Model", "read_config"]


def read_config(keys: Keys) -> Config:
    """RoBERTa's own keys and defaults. Raises CheckpointError."""
    return read_bert(keys, vocab_size=50265, first_position=keys.integer("pad_token_id", 1) + 1)


class MaskedToken(nn.Module):
    """Scores of every vocabulary entry for a masked row."""

    def __init__(self, config: Config, weight_VM: nn.Parameter) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.width)
        self.layer_norm = LayerNorm(config.width, config.eps)
        self.decoder = Matrix(weight_VM)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x_RM: Tensor) -> Tensor:
        x_RM = self.layer_norm(ACTIVATIONS["gelu"](self.dense(x_RM)))
        return x_RM @ self.decoder.weight.T + self.bias


class TextClass(nn.Module):
    """out(tanh(dense(first row))): a pooler of its own."""

    def __init__(self, width: int, num_labels: int) -> None:
        super().__init__()
        self.dense = Linear(width, width)
        self.out_proj = Linear(width, num_labels)

    def forward(self, first_NM: Tensor) -> Tensor:
        return self.out_proj(torch.tanh(self.dense(first_NM)))


class Model(Trunk):
    """RoBERTa with the heads of its folder."""

    base_prefix: ClassVar[str] = "roberta."
    outside: ClassVar[frozenset[str]] = frozenset({"lm_head", "classifier", "qa_outputs"})
    vocab_matrix: ClassVar[str] = "lm_head.decoder.weight"
    aliases: ClassVar[Mapping[str, str]] = {"lm_head.decoder.bias": "lm_head.bias"}
    signs: ClassVar[Mapping[str, str]] = {
        "mask": "lm_head.dense.weight",
        "class": "classifier.out_proj.weight",
        "tag": "classifier.weight",
        "span": "qa_outputs.weight",
    }

    def __init__(self, config: Config, heads: Heads) -> None:
        super().__init__(config)
        self.head_names = heads.names
        if "mask" in heads:
            table_VM = self.embeddings.word_embeddings.weight
            self.lm_head = MaskedToken(config, table_VM if heads.is_tied else nn.Parameter(torch.empty_like(table_VM)))
        if "class" in heads:
            self.classifier: nn.Module = TextClass(config.width, heads.num_labels)
        if "tag" in heads:
            self.classifier = Linear(config.width, heads.num_labels)
        if "span" in heads:
            self.qa_outputs = Linear(config.width, 2)

    @property
    def heads(self) -> dict[str, Head]:
        """The heads that the folder has."""
        all_heads: dict[str, Head] = {
            "mask": lambda x_RM: self.lm_head(x_RM),
            "class": lambda first_NM: self.classifier(first_NM),
            "tag": lambda x_RM: self.classifier(x_RM),
            "span": lambda x_RM: self.qa_outputs(x_RM),
        }
        return {name: all_heads[name] for name in self.head_names}
