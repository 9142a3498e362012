"""What the models of all decoder families share: how files name their parts, heads, and a site for each layer."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from trefoil_models.attend import Site
from trefoil_models.heads import Head, Heads, NextToken
from trefoil_models.layers import Embedding, Linear


class Decoder(nn.Module):
    """A family's Model makes its embedding and its layers, then `add_heads`; how rows pass through them is its own."""

    kind: ClassVar[str] = "decoder"
    outside: ClassVar[frozenset[str]] = frozenset({"lm_head", "score"})
    vocab_matrix: ClassVar[str] = "lm_head.weight"
    aliases: ClassVar[Mapping[str, str]] = {}
    signs: ClassVar[Mapping[str, str]] = {}
    base_prefix: ClassVar[str] = "model."
    transposed: ClassVar[frozenset[str]] = frozenset()
    class_head: ClassVar[str] = "score"
    class_head_has_bias: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def add_heads(self, embedding: Embedding, heads: Heads) -> None:
        """The next token's, with the embedding's matrix where the folder ties them, and a class head if it has one."""
        words_VM = embedding.weight
        self.is_classifier = "class" in heads
        if self.is_classifier:
            setattr(
                self,
                self.class_head,
                Linear(words_VM.shape[1], heads.num_labels, bias=self.class_head_has_bias),
            )
        self.lm_head = NextToken(words_VM if heads.is_tied else nn.Parameter(torch.empty_like(words_VM)))

    @property
    def heads(self) -> dict[str, Head]:
        """What reads rows of one pass: the class head of a folder that has one."""
        return {"class": lambda last_NM: getattr(self, self.class_head)(last_NM)} if self.is_classifier else {}

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site(self.config.kv_heads, self.config.head_dim),) * self.config.num_layers
