"""DistilBERT (`distilbert`; Sanh et al., arXiv 1910.01108): bert's layers under other names, no types, no pooler."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from trefoil_kernels.gated_act import ACTIVATIONS
from trefoil_kernels.masks import Mask
from trefoil_models.attend import Attend, Rows, Site
from trefoil_models.config_keys import MOST_LAYERS, CheckpointError, Keys, divided_plainly
from trefoil_models.heads import Head, Heads
from trefoil_models.layers import Embedding, LayerNorm, Linear, activated, side_by_side

EPS = 1e-12
"""DistilBERT's configs have no key for it."""


@dataclass(frozen=True, slots=True)
class Config:
    """The checkpoint keys that the mathematics needs."""

    vocab_size: int
    width: int
    inner: int
    num_layers: int
    heads: int
    head_dim: int
    longest: int
    activation: str
    is_tied: bool
    length_pivot: None = None

    def divided(self, ranks: int) -> Self:
        """One rank's: fewer heads, a narrower feed-forward. Raises Indivisible."""
        return divided_plainly(self, ranks)


def read_config(keys: Keys) -> Config:
    """DistilBERT's own keys and defaults; the usual names are read too. Raises CheckpointError."""
    width, heads = (
        keys.size("dim", keys.size("hidden_size", 768)),
        keys.size("n_heads", keys.size("num_attention_heads", 12)),
    )
    if width % heads:
        raise CheckpointError(f"config.json: dim {width} is no multiple of n_heads {heads}")
    return Config(
        vocab_size=keys.size("vocab_size", 30522),
        width=width,
        inner=keys.size("hidden_dim", keys.size("intermediate_size", 3072)),
        num_layers=keys.size("n_layers", keys.size("num_hidden_layers", 6), most=MOST_LAYERS),
        heads=heads,
        head_dim=width // heads,
        longest=keys.size("max_position_embeddings", 512),
        activation=keys.choice("activation", ACTIVATIONS, "gelu"),
        is_tied=keys.flag("tie_word_embeddings", True),
    )


class Embeddings(nn.Module):
    """norm(word + position)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.word_embeddings = Embedding(config.vocab_size, config.width)
        self.position_embeddings = Embedding(config.longest, config.width)
        self.LayerNorm = LayerNorm(config.width, EPS)

    def forward(self, rows: Rows) -> Tensor:
        return self.LayerNorm.of_sum(self.word_embeddings(rows.ids_T), self.position_embeddings(rows.positions_T))


class Attention(nn.Module):
    """Every row sees its whole text."""

    reads_together: ClassVar[tuple[str, ...]] = ("q_lin", "k_lin", "v_lin")

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.site, self.heads = site, config.heads
        self.scale = config.head_dim**-0.5
        heads_out = config.heads * config.head_dim
        self.q_lin, self.k_lin, self.v_lin = (Linear(config.width, heads_out) for _ in range(3))
        self.out_lin = Linear(heads_out, config.width)

    def forward(self, x_TM: Tensor, attend: Attend) -> Tensor:
        q_THD, k_THD, v_THD = (
            y_TM.view(len(y_TM), self.heads, -1) for y_TM in side_by_side(x_TM, self.q_lin, self.k_lin, self.v_lin)
        )
        out_THD = attend.own(self.site, q_THD, k_THD, v_THD, mask=Mask.FULL, scale=self.scale)
        return self.out_lin(out_THD.flatten(1))


class MLP(nn.Module):
    """lin2(act(lin1(x)))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[config.activation]
        self.lin1 = Linear(config.width, config.inner)
        self.lin2 = Linear(config.inner, config.width)

    def forward(self, x_TM: Tensor) -> Tensor:
        return self.lin2(activated(x_TM, self.lin1, self.activate))


class Layer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.attention = Attention(config, site)
        self.sa_layer_norm = LayerNorm(config.width, EPS)
        self.ffn = MLP(config)
        self.output_layer_norm = LayerNorm(config.width, EPS)

    def forward(self, x_TM: Tensor, attend: Attend) -> Tensor:
        x_TM = self.sa_layer_norm.of_sum(self.attention(x_TM, attend), x_TM)
        return self.output_layer_norm.of_sum(self.ffn(x_TM), x_TM)


class Transformer(nn.Module):
    """The layers."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config, site) for site in range(config.num_layers))

    def forward(self, x_TM: Tensor, attend: Attend) -> Tensor:
        for layer in self.layer:
            x_TM = layer(x_TM, attend)
        return x_TM


class Projector(nn.Module):
    """Scores of every vocabulary entry; the matrix may be the input embedding's."""

    weight: nn.Parameter

    def __init__(self, weight_VM: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight_VM
        self.bias = nn.Parameter(torch.zeros(len(weight_VM)))

    def forward(self, x_RM: Tensor) -> Tensor:
        return x_RM @ self.weight.T + self.bias


class Model(nn.Module):
    """DistilBERT with the heads of its folder."""

    kind: ClassVar[str] = "encoder"
    base_prefix: ClassVar[str] = "distilbert."
    outside: ClassVar[frozenset[str]] = frozenset(
        {"vocab_transform", "vocab_layer_norm", "vocab_projector", "pre_classifier", "classifier", "qa_outputs"}
    )
    vocab_matrix: ClassVar[str] = "vocab_projector.weight"
    transposed: ClassVar[frozenset[str]] = frozenset()
    aliases: ClassVar[Mapping[str, str]] = {}
    signs: ClassVar[Mapping[str, str]] = {
        "mask": "vocab_transform.weight",
        "class": "pre_classifier.weight",
        "span": "qa_outputs.weight",
    }

    def __init__(self, config: Config, heads: Heads) -> None:
        super().__init__()
        self.config, self.head_names = config, heads.names
        self.embeddings = Embeddings(config)
        self.transformer = Transformer(config)
        if "mask" in heads:
            table_VM = self.embeddings.word_embeddings.weight
            self.vocab_transform = Linear(config.width, config.width)
            self.vocab_layer_norm = LayerNorm(config.width, EPS)
            self.vocab_projector = Projector(table_VM if heads.is_tied else nn.Parameter(torch.empty_like(table_VM)))
        if "class" in heads:
            self.pre_classifier = Linear(config.width, config.width)
        if "class" in heads or "tag" in heads:
            self.classifier = Linear(config.width, heads.num_labels)
        if "span" in heads:
            self.qa_outputs = Linear(config.width, 2)

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site(self.config.heads, self.config.width // self.config.heads),) * self.config.num_layers

    @property
    def heads(self) -> dict[str, Head]:
        """The heads that the folder has."""
        all_heads: dict[str, Head] = {
            "mask": self._masked_token,
            "class": lambda first_NM: self.classifier(torch.relu(self.pre_classifier(first_NM))),
            "tag": lambda x_RM: self.classifier(x_RM),
            "span": lambda x_RM: self.qa_outputs(x_RM),
        }
        return {name: all_heads[name] for name in self.head_names}

    def forward(self, rows: Rows, attend: Attend) -> Tensor:
        return self.transformer(self.embeddings(rows), attend)

    def _masked_token(self, x_RM: Tensor) -> Tensor:
        x_RM = ACTIVATIONS[self.config.activation](self.vocab_transform(x_RM))
        return self.vocab_projector(self.vocab_layer_norm(x_RM))
