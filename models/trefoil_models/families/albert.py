"""ALBERT (`albert`; Lan et al., arXiv 1909.11942): narrow embeddings mapped to the layers' width, layers that share.

`num_hidden_groups` groups of `inner_group_num` layers are run `num_hidden_layers` times altogether.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from trefoil_kernels.gated_act import ACTIVATIONS
from trefoil_kernels.masks import Mask
from trefoil_models.attend import Attend, Rows, Site
from trefoil_models.config_keys import CheckpointError, Keys
from trefoil_models.families import bert
from trefoil_models.heads import Head, Heads
from trefoil_models.layers import LayerNorm, Linear, activated, side_by_side


@dataclass(frozen=True, slots=True)
class Config:
    """The keys shared with bert, the embeddings' width, and how layers are shared."""

    shared: bert.Config
    embedding_width: int
    num_groups: int
    group_len: int
    length_pivot: None = None

    def divided(self, ranks: int) -> Self:
        """One rank's: fewer heads, a narrower feed-forward. Raises Indivisible."""
        return replace(self, shared=self.shared.divided(ranks))

    @property
    def vocab_size(self) -> int:
        return self.shared.vocab_size

    @property
    def longest(self) -> int:
        return self.shared.longest

    @property
    def is_tied(self) -> bool:
        return self.shared.is_tied


def read_config(keys: Keys) -> Config:
    """ALBERT's own keys and defaults. Raises CheckpointError."""
    shared = bert.read_bert(keys, vocab_size=30000, width=4096, heads=64, inner=16384, activation="gelu_new")
    num_groups = keys.size("num_hidden_groups", 1)
    if num_groups > shared.num_layers:
        raise CheckpointError(
            f"config.json: num_hidden_groups {num_groups} is more than num_hidden_layers {shared.num_layers}"
        )
    return Config(shared, keys.size("embedding_size", 128), num_groups, keys.size("inner_group_num", 1, most=64))


class Attention(nn.Module):
    """norm(x + attention(x)) over the whole text; the site differs from run to run."""

    reads_together: ClassVar[tuple[str, ...]] = ("query", "key", "value")

    def __init__(self, config: bert.Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.scale = config.head_dim**-0.5
        heads_out = config.heads * config.head_dim
        self.query, self.key, self.value = (Linear(config.width, heads_out) for _ in range(3))
        self.dense = Linear(heads_out, config.width)
        self.LayerNorm = LayerNorm(config.width, config.eps)

    def forward(self, x_TM: Tensor, attend: Attend, site: int) -> Tensor:
        q_THD, k_THD, v_THD = (
            y_TM.view(len(y_TM), self.heads, -1) for y_TM in side_by_side(x_TM, self.query, self.key, self.value)
        )
        out_THD = attend.own(site, q_THD, k_THD, v_THD, mask=Mask.FULL, scale=self.scale)
        return self.LayerNorm.of_sum(self.dense(out_THD.flatten(1)), x_TM)


class Layer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, config: bert.Config) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[config.activation]
        self.attention = Attention(config)
        self.ffn = Linear(config.width, config.inner)
        self.ffn_output = Linear(config.inner, config.width)
        self.full_layer_layer_norm = LayerNorm(config.width, config.eps)

    def forward(self, x_TM: Tensor, attend: Attend, site: int) -> Tensor:
        x_TM = self.attention(x_TM, attend, site)
        return self.full_layer_layer_norm.of_sum(self.ffn_output(activated(x_TM, self.ffn, self.activate)), x_TM)


class Group(nn.Module):
    """Layers that are run one after the other, again and again."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.albert_layers = nn.ModuleList(Layer(config.shared) for _ in range(config.group_len))


class Encoder(nn.Module):
    """To the layers' width, then each group as often as its share of the layers."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.num_layers = config.shared.num_layers
        self.embedding_hidden_mapping_in = Linear(config.embedding_width, config.shared.width)
        self.albert_layer_groups = nn.ModuleList(Group(config) for _ in range(config.num_groups))

    def forward(self, x_TE: Tensor, attend: Attend) -> Tensor:
        x_TM = self.embedding_hidden_mapping_in(x_TE)
        site = 0
        for number in range(self.num_layers):
            group = self.albert_layer_groups[int(number / (self.num_layers / len(self.albert_layer_groups)))]
            assert isinstance(group, Group)
            for layer in group.albert_layers:
                x_TM = layer(x_TM, attend, site)
                site += 1
        return x_TM


class Predictions(nn.Module):
    """Scores of every vocabulary entry for a masked row, by way of the embeddings' width."""

    def __init__(self, config: Config, weight_VE: nn.Parameter) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[config.shared.activation]
        self.dense = Linear(config.shared.width, config.embedding_width)
        self.LayerNorm = LayerNorm(config.embedding_width, config.shared.eps)
        self.decoder = bert.Matrix(weight_VE)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x_RM: Tensor) -> Tensor:
        return self.LayerNorm(self.activate(self.dense(x_RM))) @ self.decoder.weight.T + self.bias


class SentenceOrder(nn.Module):
    """Whether two texts stand in order (label 0) or are swapped (1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classifier = Linear(width, 2)

    def forward(self, pooled_NM: Tensor) -> Tensor:
        return self.classifier(pooled_NM)


class Model(nn.Module):
    """ALBERT with the heads of its folder."""

    kind: ClassVar[str] = "encoder"
    base_prefix: ClassVar[str] = "albert."
    outside: ClassVar[frozenset[str]] = frozenset({"predictions", "sop_classifier", "classifier", "qa_outputs"})
    vocab_matrix: ClassVar[str] = "predictions.decoder.weight"
    transposed: ClassVar[frozenset[str]] = frozenset()
    aliases: ClassVar[Mapping[str, str]] = {"predictions.decoder.bias": "predictions.bias"}
    signs: ClassVar[Mapping[str, str]] = {
        "mask": "predictions.dense.weight",
        "pair": "sop_classifier.classifier.weight",
        "span": "qa_outputs.weight",
    }

    def __init__(self, config: Config, heads: Heads) -> None:
        super().__init__()
        width = config.shared.width
        self.config, self.head_names = config, heads.names
        self.embeddings = bert.Embeddings(config.shared, config.embedding_width)
        self.encoder = Encoder(config)
        if "class" in heads or "pair" in heads:
            self.pooler = Linear(width, width)
        if "mask" in heads:
            table_VE = self.embeddings.word_embeddings.weight
            self.predictions = Predictions(
                config, table_VE if heads.is_tied else nn.Parameter(torch.empty_like(table_VE))
            )
        if "pair" in heads:
            self.sop_classifier = SentenceOrder(width)
        if "class" in heads or "tag" in heads:
            self.classifier = Linear(width, heads.num_labels)
        if "span" in heads:
            self.qa_outputs = Linear(width, 2)

    @property
    def sites(self) -> tuple[Site, ...]:
        shared = self.config.shared
        return (Site(shared.heads, shared.width // shared.heads),) * (shared.num_layers * self.config.group_len)

    @property
    def heads(self) -> dict[str, Head]:
        """The heads that the folder has."""
        all_heads: dict[str, Head] = {
            "mask": lambda x_RM: self.predictions(x_RM),
            "pair": lambda first_NM: self.sop_classifier(self._pooled(first_NM)),
            "class": lambda first_NM: self.classifier(self._pooled(first_NM)),
            "tag": lambda x_RM: self.classifier(x_RM),
            "span": lambda x_RM: self.qa_outputs(x_RM),
        }
        return {name: all_heads[name] for name in self.head_names}

    def forward(self, rows: Rows, attend: Attend) -> Tensor:
        return self.encoder(self.embeddings(rows), attend)

    def _pooled(self, first_NM: Tensor) -> Tensor:
        return torch.tanh(self.pooler(first_NM))
