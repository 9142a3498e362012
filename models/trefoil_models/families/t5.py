"""T5 (`t5`; Raffel et al., arXiv 1910.10683), v1.0 and v1.1 with its flan children: the parent of mT5.

An encoder that sees its whole input and a decoder that recalls it. Pre-norm RMSNorm, no biases, no scale on scores; a
learned bias by distance, one table for each side, none for recalled keys. The residual stream has the dtype of the
feed-forward's way back (`wo`), which stays in float32 where the rest is float16: larger models overflow there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from trefoil_kernels.add import add
from trefoil_kernels.bias import Bias, RelativeBias
from trefoil_kernels.gated_act import ACTIVATIONS, gated_act
from trefoil_kernels.masks import Mask
from trefoil_kernels.rms_norm import rms_norm
from trefoil_kernels.scaled import scaled
from trefoil_models.attend import Attend, Rows, Site
from trefoil_models.config_keys import MOST_LAYERS, CheckpointError, Keys, divided_plainly
from trefoil_models.heads import Head, Heads, NextToken
from trefoil_models.layers import Embedding, Linear, WideLinear, activated, side_by_side

FEED_FORWARDS = {"gated-gelu": "gelu_new"}
"""The one name of `feed_forward_proj` that does not mean what it says."""


@dataclass(frozen=True, slots=True)
class Config:
    """The checkpoint keys that the mathematics needs. `longest` is what it was made for; distances never end."""

    vocab_size: int
    width: int
    inner: int
    heads: int
    head_dim: int
    num_layers: int
    num_decoder_layers: int
    buckets: int
    max_distance: int
    eps: float
    activation: str
    is_gated: bool
    is_tied: bool
    output_scale: float
    longest: int
    length_pivot: None = None

    def divided(self, ranks: int) -> Self:
        """One rank's: fewer heads, a narrower feed-forward. Raises Indivisible."""
        return divided_plainly(self, ranks)


def read_config(keys: Keys) -> Config:
    """v1.0 ties its head to the embedding and scales what the head sees, v1.1 does neither. Raises CheckpointError."""
    is_scaled = keys.flag("scale_decoder_outputs", keys.flag("tie_word_embeddings", True))
    return read_shape(keys, output_scale=keys.size("d_model", 512) ** -0.5 if is_scaled else 1.0)


def read_shape(keys: Keys, *, output_scale: float) -> Config:
    """The keys that t5 and its children share."""
    kind = keys.text("feed_forward_proj", "relu")
    activation = FEED_FORWARDS.get(kind, kind.removeprefix("gated-"))
    if activation not in ACTIVATIONS:
        raise CheckpointError(f"config.json: feed_forward_proj = {kind!r} is not supported; known: gated-gelu, relu")
    num_layers, buckets = keys.size("num_layers", 6, most=MOST_LAYERS), keys.size("relative_attention_num_buckets", 32)
    max_distance = keys.size("relative_attention_max_distance", 128)
    if buckets % 4 or max_distance <= buckets // 2:
        raise CheckpointError(
            f"config.json: relative_attention_num_buckets {buckets} must be a multiple of 4, and at most twice "
            f"relative_attention_max_distance {max_distance}"
        )
    return Config(
        vocab_size=keys.size("vocab_size", 32128),
        width=keys.size("d_model", 512),
        inner=keys.size("d_ff", 2048),
        heads=keys.size("num_heads", 8),
        head_dim=keys.size("d_kv", 64),
        num_layers=num_layers,
        num_decoder_layers=keys.size("num_decoder_layers", num_layers, most=MOST_LAYERS),
        buckets=buckets,
        max_distance=max_distance,
        eps=keys.number("layer_norm_epsilon", 1e-6),
        activation=activation,
        is_gated=kind.startswith("gated-"),
        is_tied=keys.flag("tie_word_embeddings", True),
        output_scale=output_scale,
        longest=keys.size("n_positions", 512),
    )


def initial_std(config: Config) -> Callable[[str, nn.Parameter], float]:
    """How widely T5 draws its fresh matrices: by what flows in, queries by what replaces the missing scale as well."""

    def std_of(name: str, weight: nn.Parameter) -> float:
        if name == "shared.weight":
            return 1.0
        inputs = weight.shape[1] if "relative_attention_bias" not in name else config.width
        return float(inputs**-0.5 * (config.head_dim**-0.5 if name.endswith(".q.weight") else 1.0))

    return std_of


class Norm(nn.Module):
    """RMSNorm of the residual stream, in the dtype of what follows."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.eps = config.eps
        self.weight = nn.Parameter(torch.ones(config.width))

    def forward(self, x_TM: Tensor) -> Tensor:
        return rms_norm(x_TM, self.weight, self.eps).to(self.weight.dtype)


class Attention(nn.Module):
    """Queries from one side, keys and values from the same or the other; the width need not be the model's."""

    reads_together: ClassVar[tuple[str, ...]] = ("q", "k", "v")

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.site, self.head_dim = site, config.head_dim
        width, inner = config.width, config.heads * config.head_dim
        self.q, self.k, self.v = (Linear(width, inner, bias=False) for _ in range(3))
        self.o = Linear(inner, width, bias=False)

    def keys(self, x_TM: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of these rows, [T, H, D] each."""
        return self._split(self.k(x_TM)), self._split(self.v(x_TM))

    def own(self, x_TM: Tensor, attend: Attend, mask: Mask, bias: Bias) -> Tensor:
        """Attention within the rows' own sequence."""
        q_THD, k_THD, v_THD = map(self._split, side_by_side(x_TM, self.q, self.k, self.v))
        return self.o(attend.own(self.site, q_THD, k_THD, v_THD, mask=mask, scale=1.0, bias=bias).flatten(1))

    def recall(self, x_TM: Tensor, attend: Attend) -> Tensor:
        """Attention to what was remembered of the encoder."""
        return self.o(attend.recall(self.site, self._split(self.q(x_TM)), scale=1.0).flatten(1))

    def _split(self, x_TF: Tensor) -> Tensor:
        return x_TF.view(len(x_TF), -1, self.head_dim)


class TabledAttention(Attention):
    """A stack's first attention, which keeps the table of all."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__(config, site)
        self.relative_attention_bias = Embedding(config.buckets, config.heads)


class OwnSublayer(nn.Module):
    """x + attention(norm(x)) within the own sequence."""

    def __init__(self, config: Config, site: int, mask: Mask) -> None:
        super().__init__()
        self.mask = mask
        self.SelfAttention = (Attention if site else TabledAttention)(config, site)
        self.layer_norm = Norm(config)

    def forward(self, x_TM: Tensor, attend: Attend, bias: Bias) -> Tensor:
        return add(x_TM, self.SelfAttention.own(self.layer_norm(x_TM), attend, self.mask, bias))


class RecallSublayer(nn.Module):
    """x + attention(norm(x)) to the encoder's output."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.EncDecAttention = Attention(config, site)
        self.layer_norm = Norm(config)

    def forward(self, x_TM: Tensor, attend: Attend) -> Tensor:
        return add(x_TM, self.EncDecAttention.recall(self.layer_norm(x_TM), attend))


class FeedForward(nn.Module):
    """wo(act(wi(x)))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[config.activation]
        self.wi = Linear(config.width, config.inner, bias=False)
        self.wo = WideLinear(config.inner, config.width, bias=False)

    def forward(self, x_TM: Tensor) -> Tensor:
        inner_TF = activated(x_TM, self.wi, self.activate)
        return self.wo(inner_TF.to(_dtype_of(self.wo, inner_TF)))


class GatedFeedForward(nn.Module):
    """wo(act(wi_0(x)) * wi_1(x))."""

    reads_together: ClassVar[tuple[str, ...]] = ("wi_0", "wi_1")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.activation = config.activation
        self.wi_0, self.wi_1 = (Linear(config.width, config.inner, bias=False) for _ in range(2))
        self.wo = WideLinear(config.inner, config.width, bias=False)

    def forward(self, x_TM: Tensor) -> Tensor:
        gate_TF, up_TF = side_by_side(x_TM, self.wi_0, self.wi_1)
        inner_TF = gated_act(gate_TF, up_TF, self.activation)
        return self.wo(inner_TF.to(_dtype_of(self.wo, inner_TF)))


class FeedSublayer(nn.Module):
    """x + feed_forward(norm(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.DenseReluDense = (GatedFeedForward if config.is_gated else FeedForward)(config)
        self.layer_norm = Norm(config)

    def forward(self, x_TM: Tensor) -> Tensor:
        return add(x_TM, self.DenseReluDense(self.layer_norm(x_TM)))


class EncoderBlock(nn.Module):
    """Own attention, feed-forward."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList([OwnSublayer(config, site, Mask.FULL), FeedSublayer(config)])

    def forward(self, x_TM: Tensor, attend: Attend, bias: Bias) -> Tensor:
        own, feed = self.layer
        return feed(own(x_TM, attend, bias))


class DecoderBlock(nn.Module):
    """Own attention, attention to the encoder, feed-forward."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            [OwnSublayer(config, site, Mask.CAUSAL), RecallSublayer(config, site), FeedSublayer(config)]
        )

    def remember(self, states_KM: Tensor, there: Attend) -> None:
        """Let the decoder's side keep this block's keys and values of the encoder's output."""
        attention = cast(RecallSublayer, self.layer[1]).EncDecAttention
        there.remember(attention.site, *attention.keys(states_KM))

    def forward(self, x_TM: Tensor, attend: Attend, bias: Bias) -> Tensor:
        own, recall, feed = self.layer
        return feed(recall(own(x_TM, attend, bias), attend))


def _dtype_of(linear: nn.Module, otherwise: Tensor) -> torch.dtype:
    """Its weight's, which is its first parameter however it is wrapped; one in 8 bits has none and takes what comes."""
    return next(linear.parameters(), otherwise).dtype


class Stack(nn.Module):
    """One side: blocks that share a table of distances, then a norm."""

    def __init__(
        self, config: Config, blocks: list[EncoderBlock] | list[DecoderBlock], *, is_bidirectional: bool
    ) -> None:
        super().__init__()
        self.max_distance, self.is_bidirectional = config.max_distance, is_bidirectional
        self._settled: RelativeBias | None = None
        self.block = nn.ModuleList(blocks)
        self.final_layer_norm = Norm(config)

    @property
    def stream_dtype(self) -> torch.dtype:
        """What the residual stream is kept in."""
        last = cast(nn.ModuleList, self.block[0].layer)[-1]
        return _dtype_of(cast(FeedSublayer, last).DenseReluDense.wo, self.final_layer_norm.weight)

    @property
    def distances(self) -> Tensor:
        """Numbers per bucket and head, which the first block keeps for all."""
        first = cast(nn.ModuleList, self.block[0].layer)[0]
        return cast(TabledAttention, cast(OwnSublayer, first).SelfAttention).relative_attention_bias.weight

    @property
    def bias(self) -> RelativeBias:
        """One for each pass, until the weights are `settled`."""
        return self._settled or RelativeBias(self.distances, self.max_distance, self.is_bidirectional)

    def settle(self) -> None:
        """The weights will not change any more: what kernels read of the bias is kept from pass to pass."""
        self._settled = self.bias

    def forward(self, x_TM: Tensor, attend: Attend) -> Tensor:
        bias = self.bias
        for block in self.block:
            x_TM = block(x_TM, attend, bias)
        return self.final_layer_norm(x_TM)


class Model(nn.Module):
    """Ids to the decoder's hidden rows, ready for the head, once the input's ids were encoded."""

    kind: ClassVar[str] = "encoder-decoder"
    base_prefix: ClassVar[str] = ""
    vocab_matrix: ClassVar[str] = "lm_head.weight"
    signs: ClassVar[Mapping[str, str]] = {}
    transposed: ClassVar[frozenset[str]] = frozenset()
    aliases: ClassVar[Mapping[str, str]] = {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }
    outside: ClassVar[frozenset[str]] = frozenset({"lm_head"})

    def __init__(self, config: Config, heads: Heads) -> None:
        super().__init__()
        self.config = config
        self.shared = Embedding(config.vocab_size, config.width)
        encoder = [EncoderBlock(config, site) for site in range(config.num_layers)]
        decoder = [DecoderBlock(config, site) for site in range(config.num_decoder_layers)]
        self.encoder = Stack(config, encoder, is_bidirectional=True)
        self.decoder = Stack(config, decoder, is_bidirectional=False)
        self.lm_head = NextToken(
            self.shared.weight if heads.is_tied else nn.Parameter(torch.empty(config.vocab_size, config.width))
        )

    @property
    def heads(self) -> dict[str, Head]:
        return {}

    @property
    def sites(self) -> tuple[Site, ...]:
        """The decoder's; what a site remembers has the shape of its own keys."""
        return (Site(self.config.heads, self.config.head_dim),) * self.config.num_decoder_layers

    def encode(self, rows: Rows, here: Attend, there: Attend) -> Tensor:
        """The encoder's output for these rows, [T, M]; the decoder's side remembers what it will recall of it."""
        states_TM: Tensor = self.encoder(self._embed(rows), here)
        for block in self.decoder.block:
            cast(DecoderBlock, block).remember(states_TM, there)
        return states_TM

    def forward(self, rows: Rows, attend: Attend) -> Tensor:
        return scaled(self.decoder(self._embed(rows), attend), self.config.output_scale)

    def _embed(self, rows: Rows) -> Tensor:
        return self.shared(rows.ids_T).to(self.decoder.stream_dtype)
