"""BART (`bart`; Lewis et al., arXiv 1910.13461): the parent of mBART.

An encoder that sees its whole input and a decoder that recalls it. Learned positions, LayerNorm after each sublayer
(mBART: before it, and once more at each side's end), biases everywhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from trefoil_kernels.add import add
from trefoil_kernels.gated_act import ACTIVATIONS
from trefoil_kernels.lookup import lookup
from trefoil_kernels.masks import Mask
from trefoil_kernels.scaled import scaled
from trefoil_models.attend import Attend, Rows, Site
from trefoil_models.config_keys import MOST_LAYERS, CheckpointError, Keys, divided_plainly
from trefoil_models.heads import Head, Heads, NextToken
from trefoil_models.layers import Embedding, LayerNorm, Linear, activated

POSITION_OFFSET = 2
"""The first rows of a table of positions belong to no position."""
EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Side:
    """The encoder's or the decoder's own sizes."""

    num_layers: int
    inner: int
    heads: int
    head_dim: int

    def divided(self, ranks: int) -> Self:
        """One rank's: fewer heads, a narrower feed-forward. Raises Indivisible."""
        return divided_plainly(self, ranks)


@dataclass(frozen=True, slots=True)
class Config:
    """The checkpoint keys that the mathematics needs."""

    vocab_size: int
    width: int
    encoder: Side
    decoder: Side
    activation: str
    embedding_scale: float
    norms_first: bool
    is_tied: bool
    longest: int
    length_pivot: None = None

    def divided(self, ranks: int) -> Self:
        """One rank's. Raises Indivisible."""
        return replace(self, encoder=self.encoder.divided(ranks), decoder=self.decoder.divided(ranks))


def read_config(keys: Keys) -> Config:
    """BART's own keys and defaults. Raises CheckpointError."""
    return read_shape(keys, norms_first=False)


def read_shape(keys: Keys, *, norms_first: bool) -> Config:
    """The keys that bart and its children share; the arguments are what differs between them.

    Untied, each side would have an embedding of its own beside the head's; no release has them.
    """
    keys.refuse("tie_word_embeddings", True)
    width = keys.size("d_model", 1024)
    return Config(
        vocab_size=keys.size("vocab_size", 50265),
        width=width,
        encoder=_side(keys, "encoder", width),
        decoder=_side(keys, "decoder", width),
        activation=keys.choice("activation_function", ACTIVATIONS, "gelu"),
        embedding_scale=width**0.5 if keys.flag("scale_embedding", False) else 1.0,
        norms_first=norms_first,
        is_tied=True,
        longest=keys.size("max_position_embeddings", 1024),
    )


def _side(keys: Keys, name: str, width: int) -> Side:
    heads = keys.size(f"{name}_attention_heads", 16)
    if width % heads:
        raise CheckpointError(f"config.json: d_model {width} is no multiple of {name}_attention_heads {heads}")
    num_layers = keys.size(f"{name}_layers", 12, most=MOST_LAYERS)
    return Side(num_layers, keys.size(f"{name}_ffn_dim", 4096), heads, width // heads)


class Attention(nn.Module):
    """Queries from one side, keys and values from the same or the other."""

    def __init__(self, width: int, side: Side, site: int) -> None:
        super().__init__()
        self.site, self.heads, self.scale = site, side.heads, side.head_dim**-0.5
        heads_out = side.heads * side.head_dim
        self.k_proj, self.v_proj, self.q_proj = (Linear(width, heads_out) for _ in range(3))
        self.out_proj = Linear(heads_out, width)

    def keys(self, x_TM: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of these rows, [T, H, D] each."""
        return self._split(self.k_proj(x_TM)), self._split(self.v_proj(x_TM))

    def own(self, x_TM: Tensor, attend: Attend, mask: Mask) -> Tensor:
        """Attention within the rows' own sequence."""
        q_THD, (k_THD, v_THD) = self._split(self.q_proj(x_TM)), self.keys(x_TM)
        return self.out_proj(attend.own(self.site, q_THD, k_THD, v_THD, mask=mask, scale=self.scale).flatten(1))

    def recall(self, x_TM: Tensor, attend: Attend) -> Tensor:
        """Attention to what was remembered of the encoder."""
        return self.out_proj(attend.recall(self.site, self._split(self.q_proj(x_TM)), scale=self.scale).flatten(1))

    def _split(self, x_TF: Tensor) -> Tensor:
        return x_TF.view(len(x_TF), self.heads, -1)


class EncoderLayer(nn.Module):
    """Attention within the sequence, feed-forward; each with its residual and its norm."""

    def __init__(self, config: Config, side: Side, site: int) -> None:
        super().__init__()
        self.norms_first, self.activate = config.norms_first, ACTIVATIONS[config.activation]
        self.self_attn = Attention(config.width, side, site)
        self.self_attn_layer_norm = LayerNorm(config.width, EPS)
        self.fc1, self.fc2 = Linear(config.width, side.inner), Linear(side.inner, config.width)
        self.final_layer_norm = LayerNorm(config.width, EPS)

    def forward(self, x_TM: Tensor, attend: Attend) -> Tensor:
        return _feed(self, _attend_own(self, x_TM, attend, Mask.FULL))


class DecoderLayer(nn.Module):
    """A causal layer that recalls the encoder in between."""

    def __init__(self, config: Config, side: Side, site: int) -> None:
        super().__init__()
        self.norms_first, self.activate = config.norms_first, ACTIVATIONS[config.activation]
        self.self_attn, self.encoder_attn = (Attention(config.width, side, site) for _ in range(2))
        self.self_attn_layer_norm, self.encoder_attn_layer_norm, self.final_layer_norm = (
            LayerNorm(config.width, EPS) for _ in range(3)
        )
        self.fc1, self.fc2 = Linear(config.width, side.inner), Linear(side.inner, config.width)

    def remember(self, states_KM: Tensor, there: Attend) -> None:
        """Let the decoder's side keep this layer's keys and values of the encoder's output."""
        there.remember(self.encoder_attn.site, *self.encoder_attn.keys(states_KM))

    def forward(self, x_TM: Tensor, attend: Attend) -> Tensor:
        x_TM = _attend_own(self, x_TM, attend, Mask.CAUSAL)
        x_TM = _around(self, self.encoder_attn_layer_norm, x_TM, lambda x_TM: self.encoder_attn.recall(x_TM, attend))
        return _feed(self, x_TM)


def _attend_own(layer: EncoderLayer | DecoderLayer, x_TM: Tensor, attend: Attend, mask: Mask) -> Tensor:
    norm = layer.self_attn_layer_norm
    return _around(layer, norm, x_TM, lambda x_TM: layer.self_attn.own(x_TM, attend, mask))


def _feed(layer: EncoderLayer | DecoderLayer, x_TM: Tensor) -> Tensor:
    return _around(
        layer, layer.final_layer_norm, x_TM, lambda x_TM: layer.fc2(activated(x_TM, layer.fc1, layer.activate))
    )


def _around(
    layer: EncoderLayer | DecoderLayer, norm: LayerNorm, x_TM: Tensor, part: Callable[[Tensor], Tensor]
) -> Tensor:
    """A sublayer with its residual, its norm before or after."""
    return add(x_TM, part(norm(x_TM))) if layer.norms_first else norm.of_sum(part(x_TM), x_TM)


class Stack(nn.Module):
    """One side: positions and a norm on the embedded ids, then layers."""

    def __init__(self, config: Config, layers: list[EncoderLayer] | list[DecoderLayer]) -> None:
        super().__init__()
        self.embed_positions = Embedding(config.longest + POSITION_OFFSET, config.width)
        self.layernorm_embedding = LayerNorm(config.width, EPS)
        self.layers = nn.ModuleList(layers)
        self.layer_norm = LayerNorm(config.width, EPS) if config.norms_first else nn.Identity()

    def forward(self, x_TM: Tensor, rows: Rows, attend: Attend) -> Tensor:
        places_TM = lookup(rows.positions_T, self.embed_positions.weight[POSITION_OFFSET:])
        x_TM = self.layernorm_embedding.of_sum(x_TM, places_TM)
        for layer in self.layers:
            x_TM = layer(x_TM, attend)
        return self.layer_norm(x_TM)


class Model(nn.Module):
    """Ids to the decoder's hidden rows, once the input's ids were encoded."""

    kind: ClassVar[str] = "encoder-decoder"
    base_prefix: ClassVar[str] = "model."
    vocab_matrix: ClassVar[str] = "lm_head.weight"
    signs: ClassVar[Mapping[str, str]] = {"bias": "final_logits_bias"}
    transposed: ClassVar[frozenset[str]] = frozenset()
    aliases: ClassVar[Mapping[str, str]] = {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }
    outside: ClassVar[frozenset[str]] = frozenset({"lm_head", "final_logits_bias"})

    def __init__(self, config: Config, heads: Heads) -> None:
        super().__init__()
        self.config = config
        self.shared = Embedding(config.vocab_size, config.width)
        encoder = [EncoderLayer(config, config.encoder, site) for site in range(config.encoder.num_layers)]
        decoder = [DecoderLayer(config, config.decoder, site) for site in range(config.decoder.num_layers)]
        self.encoder, self.decoder = Stack(config, encoder), Stack(config, decoder)
        self.final_logits_bias = nn.Parameter(torch.zeros(1, config.vocab_size)) if "bias" in heads else None
        self.lm_head = NextToken(
            self.shared.weight if heads.is_tied else nn.Parameter(torch.empty(config.vocab_size, config.width)),
            self.final_logits_bias,
        )

    @property
    def heads(self) -> dict[str, Head]:
        return {}

    @property
    def sites(self) -> tuple[Site, ...]:
        """The decoder's; what a site remembers has the shape of its own keys."""
        side = self.config.decoder
        return (Site(side.heads, side.head_dim),) * side.num_layers

    def encode(self, rows: Rows, here: Attend, there: Attend) -> Tensor:
        """The encoder's output for these rows, [T, M]; the decoder's side remembers what it will recall of it."""
        states_TM: Tensor = self.encoder(self._embed(rows), rows, here)
        for layer in self.decoder.layers:
            cast(DecoderLayer, layer).remember(states_TM, there)
        return states_TM

    def forward(self, rows: Rows, attend: Attend) -> Tensor:
        return self.decoder(self._embed(rows), rows, attend)

    def _embed(self, rows: Rows) -> Tensor:
        return scaled(self.shared(rows.ids_T), self.config.embedding_scale)
