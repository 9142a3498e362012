"""BERT (`bert`; Devlin et al., arXiv 1810.04805) and MiniLM: post-norm layers that see the whole text.

Word, position and type embeddings are summed and normed. The parent of roberta and xlm_roberta. Parameter names are
those of the files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from trefoil_kernels.add import add
from trefoil_kernels.gated_act import ACTIVATIONS
from trefoil_kernels.lookup import lookup
from trefoil_kernels.masks import Mask
from trefoil_models.attend import Attend, Rows, Site
from trefoil_models.config_keys import MOST_LAYERS, CheckpointError, Keys, divided_plainly
from trefoil_models.heads import Head, Heads
from trefoil_models.layers import Embedding, LayerNorm, Linear, activated, side_by_side


@dataclass(frozen=True, slots=True)
class Config:
    """The checkpoint keys that the mathematics needs; a text's positions begin at `first_position`."""

    vocab_size: int
    width: int
    inner: int
    num_layers: int
    heads: int
    head_dim: int
    num_positions: int
    num_types: int
    eps: float
    activation: str
    is_tied: bool
    first_position: int = 0
    length_pivot: None = None

    def divided(self, ranks: int) -> Self:
        """One rank's: fewer heads, a narrower feed-forward. Raises Indivisible."""
        return divided_plainly(self, ranks)

    @property
    def longest(self) -> int:
        return self.num_positions - self.first_position


def read_config(keys: Keys) -> Config:
    """BERT's own keys and defaults. Raises CheckpointError."""
    return read_bert(keys)


def read_bert(
    keys: Keys,
    *,
    vocab_size: int = 30522,
    width: int = 768,
    heads: int = 12,
    inner: int = 3072,
    activation: str = "gelu",
    first_position: int = 0,
) -> Config:
    """The keys that bert and its children share; the arguments are what differs between them."""
    keys.refuse("is_decoder", False)
    keys.refuse("add_cross_attention", False)
    keys.refuse("position_embedding_type", "absolute")
    width, heads = keys.size("hidden_size", width), keys.size("num_attention_heads", heads)
    if width % heads:
        raise CheckpointError(f"config.json: hidden_size {width} is no multiple of num_attention_heads {heads}")
    num_positions = keys.size("max_position_embeddings", 512)
    if num_positions <= first_position:
        raise CheckpointError(f"config.json: max_position_embeddings {num_positions} leaves no position for a token")
    return Config(
        vocab_size=keys.size("vocab_size", vocab_size),
        width=width,
        inner=keys.size("intermediate_size", inner),
        num_layers=keys.size("num_hidden_layers", 12, most=MOST_LAYERS),
        heads=heads,
        head_dim=width // heads,
        num_positions=num_positions,
        num_types=keys.size("type_vocab_size", 2),
        eps=keys.number("layer_norm_eps", 1e-12),
        activation=keys.choice("hidden_act", ACTIVATIONS, activation),
        is_tied=keys.flag("tie_word_embeddings", True),
        first_position=first_position,
    )


class Embeddings(nn.Module):
    """norm(word + position + type)."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.first_position = config.first_position
        self.word_embeddings = Embedding(config.vocab_size, width)
        self.position_embeddings = Embedding(config.num_positions, width)
        self.token_type_embeddings = Embedding(config.num_types, width)
        self.LayerNorm = LayerNorm(width, config.eps)

    def forward(self, rows: Rows) -> Tensor:
        positions_TM = lookup(rows.positions_T, self.position_embeddings.weight[self.first_position :])
        x_TM = add(self.word_embeddings(rows.ids_T), positions_TM)
        return self.LayerNorm.of_sum(x_TM, self._types(rows).expand_as(x_TM))

    def _types(self, rows: Rows) -> Tensor:
        """Types that the model was not made with are type 0, as its tokenizer would have it."""
        if rows.types_T is None or self.token_type_embeddings.num_embeddings == 1:
            return self.token_type_embeddings.weight[0]
        return self.token_type_embeddings(rows.types_T)


class SelfAttention(nn.Module):
    """Every row sees its whole text."""

    reads_together: ClassVar[tuple[str, ...]] = ("query", "key", "value")

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.site, self.heads = site, config.heads
        self.scale = config.head_dim**-0.5
        heads_out = config.heads * config.head_dim
        self.query, self.key, self.value = (Linear(config.width, heads_out) for _ in range(3))

    def forward(self, x_TM: Tensor, attend: Attend) -> Tensor:
        q_THD, k_THD, v_THD = (
            y_TM.view(len(y_TM), self.heads, -1) for y_TM in side_by_side(x_TM, self.query, self.key, self.value)
        )
        return attend.own(self.site, q_THD, k_THD, v_THD, mask=Mask.FULL, scale=self.scale).flatten(1)


class AddNorm(nn.Module):
    """norm(x + dense(y))."""

    def __init__(self, inner: int, width: int, eps: float) -> None:
        super().__init__()
        self.dense = Linear(inner, width)
        self.LayerNorm = LayerNorm(width, eps)

    def forward(self, y_TF: Tensor, x_TM: Tensor) -> Tensor:
        return self.LayerNorm.of_sum(self.dense(y_TF), x_TM)


class Attention(nn.Module):
    """Attention with its residual and norm, under the files' names."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.self = SelfAttention(config, site)
        self.output = AddNorm(config.heads * config.head_dim, config.width, config.eps)

    def forward(self, x_TM: Tensor, attend: Attend) -> Tensor:
        return self.output(self.self(x_TM, attend), x_TM)


class Widen(nn.Module):
    """act(dense(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[config.activation]
        self.dense = Linear(config.width, config.inner)

    def forward(self, x_TM: Tensor) -> Tensor:
        return activated(x_TM, self.dense, self.activate)


class Layer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.attention = Attention(config, site)
        self.intermediate = Widen(config)
        self.output = AddNorm(config.inner, config.width, config.eps)

    def forward(self, x_TM: Tensor, attend: Attend) -> Tensor:
        x_TM = self.attention(x_TM, attend)
        return self.output(self.intermediate(x_TM), x_TM)


class Encoder(nn.Module):
    """The layers."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config, site) for site in range(config.num_layers))

    def forward(self, x_TM: Tensor, attend: Attend) -> Tensor:
        for layer in self.layer:
            x_TM = layer(x_TM, attend)
        return x_TM


class Trunk(nn.Module):
    """Ids to hidden rows: all that bert's children share; heads are theirs."""

    kind: ClassVar[str] = "encoder"
    transposed: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config, config.width)
        self.encoder = Encoder(config)

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site(self.config.heads, self.config.head_dim),) * self.config.num_layers

    def forward(self, rows: Rows, attend: Attend) -> Tensor:
        return self.encoder(self.embeddings(rows), attend)


class Transform(nn.Module):
    """norm(act(dense(x))): what stands between a hidden row and the vocabulary."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[config.activation]
        self.dense = Linear(config.width, config.width)
        self.LayerNorm = LayerNorm(config.width, config.eps)

    def forward(self, x_RM: Tensor) -> Tensor:
        return self.LayerNorm(self.activate(self.dense(x_RM)))


class Matrix(nn.Module):
    """A weight that may be another module's."""

    weight: nn.Parameter

    def __init__(self, weight_VM: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight_VM


class Predictions(nn.Module):
    """Scores of every vocabulary entry for a masked row."""

    def __init__(self, config: Config, weight_VM: nn.Parameter) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.decoder = Matrix(weight_VM)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x_RM: Tensor) -> Tensor:
        return self.transform(x_RM) @ self.decoder.weight.T + self.bias


class Pooler(nn.Module):
    """tanh(dense(x)): what BERT's heads on whole texts read of the first row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = Linear(width, width)

    def forward(self, first_NM: Tensor) -> Tensor:
        return torch.tanh(self.dense(first_NM))


class PretrainingHeads(nn.Module):
    """Masked tokens, and whether the second text follows the first (label 0) or not (1)."""

    def __init__(self, config: Config, heads: Heads, weight_VM: nn.Parameter) -> None:
        super().__init__()
        if "mask" in heads:
            self.predictions = Predictions(config, weight_VM)
        if "pair" in heads:
            self.seq_relationship = Linear(config.width, 2)


class Model(Trunk):
    """BERT with the heads of its folder."""

    base_prefix: ClassVar[str] = "bert."
    outside: ClassVar[frozenset[str]] = frozenset({"cls", "classifier", "qa_outputs"})
    vocab_matrix: ClassVar[str] = "cls.predictions.decoder.weight"
    aliases: ClassVar[Mapping[str, str]] = {"cls.predictions.decoder.bias": "cls.predictions.bias"}
    signs: ClassVar[Mapping[str, str]] = {
        "mask": "cls.predictions.transform.dense.weight",
        "pair": "cls.seq_relationship.weight",
        "span": "qa_outputs.weight",
    }

    def __init__(self, config: Config, heads: Heads) -> None:
        super().__init__(config)
        if "class" in heads or "pair" in heads:
            self.pooler = Pooler(config.width)
        if "mask" in heads or "pair" in heads:
            table_VM = self.embeddings.word_embeddings.weight
            self.cls = PretrainingHeads(
                config, heads, table_VM if heads.is_tied else nn.Parameter(torch.empty_like(table_VM))
            )
        if "class" in heads or "tag" in heads:
            self.classifier = Linear(config.width, heads.num_labels)
        if "span" in heads:
            self.qa_outputs = Linear(config.width, 2)
        self.head_names = heads.names

    @property
    def heads(self) -> dict[str, Head]:
        """The heads that the folder has."""
        all_heads: dict[str, Head] = {
            "mask": lambda x_RM: self.cls.predictions(x_RM),
            "pair": lambda first_NM: self.cls.seq_relationship(self.pooler(first_NM)),
            "class": lambda first_NM: self.classifier(self.pooler(first_NM)),
            "tag": lambda x_RM: self.classifier(x_RM),
            "span": lambda x_RM: self.qa_outputs(x_RM),
        }
        return {name: all_heads[name] for name in self.head_names}
