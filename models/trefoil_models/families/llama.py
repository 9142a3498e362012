"""LLaMA 1, 2 and 3, Yi, DeepSeek-LLM (`llama`; Touvron et al., arXiv 2302.13971): the parent of most decoders.

Pre-norm RMSNorm, rotary positions in the half layout, grouped query heads, gated feed-forward. Parameter names are
those of the files, so no weight needs renaming.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from trefoil_kernels.add import add
from trefoil_kernels.gated_act import ACTIVATIONS
from trefoil_kernels.masks import Mask
from trefoil_kernels.rotary import Turn
from trefoil_models.attend import Attend, Rows
from trefoil_models.config_keys import MOST_LAYERS, CheckpointError, Keys, divided, divided_kv_heads
from trefoil_models.decoder import Decoder
from trefoil_models.heads import Heads
from trefoil_models.layers import Embedding, FusedGatedMLP, GatedMLP, Linear, RMSNorm, side_by_side
from trefoil_models.mixture import Mixture, MixtureShape
from trefoil_models.rotary_scaling import Rotary, Scaling, read_scaling

LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True, slots=True)
class Config:
    """The checkpoint keys that the mathematics needs.

    `windows` has one entry a layer, None for full attention; `mixtures` too, None for a plain feed-forward, and none at
    all where every layer has one.
    """

    vocab_size: int
    width: int
    inner: int
    num_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    activation: str
    scaling: Scaling
    windows: tuple[int | None, ...]
    is_tied: bool
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    has_qk_norm: bool = False
    fuses_gate_up: bool = False
    mixtures: tuple[MixtureShape | None, ...] = ()

    @classmethod
    def of(cls, dense: "Config", **own: Any) -> Self:
        """A child's, with what is its own."""
        return cls(**{part.name: getattr(dense, part.name) for part in fields(Config)} | own)

    def divided(self, ranks: int) -> Self:
        """One rank's: fewer heads, narrower feed-forwards. Raises Indivisible."""
        return replace(
            self,
            heads=divided("num_attention_heads", self.heads, ranks),
            kv_heads=divided_kv_heads(self.kv_heads, ranks),
            inner=divided("intermediate_size", self.inner, ranks),
            mixtures=tuple(mixture and mixture.divided(ranks) for mixture in self.mixtures),
        )

    @property
    def longest(self) -> int:
        return self.scaling.longest

    @property
    def length_pivot(self) -> int | None:
        return self.scaling.pivot


def read_config(keys: Keys) -> Config:
    """LLaMA's own keys and defaults. Raises CheckpointError."""
    has_bias = keys.flag("attention_bias", False)
    return read_dense(keys, qkv_bias=has_bias, out_bias=has_bias, mlp_bias=keys.flag("mlp_bias", False))


def read_dense(
    keys: Keys,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    max_positions: int = 2048,
    partial: float | None = None,
    windows: tuple[int | None, ...] | None = None,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    has_qk_norm: bool = False,
    fuses_gate_up: bool = False,
    eps: float = 1e-6,
    theta: float = 10000.0,
) -> Config:
    """The keys that llama and its children share; the arguments are what differs between them.

    `kv_heads`: how many there are where the file is silent; where it says null, as many as query heads. `partial`: how
    much of a head turns where the file does not say; None: a file that says so is refused.
    """
    heads, width = keys.size("num_attention_heads"), keys.size("hidden_size")
    silent = heads if kv_heads is None or keys.is_null("num_key_value_heads") else kv_heads
    kv_heads = keys.size("num_key_value_heads", silent)
    if heads % kv_heads:
        raise CheckpointError(
            f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    if "head_dim" not in keys and head_dim is None and width % heads:
        raise CheckpointError(f"config.json: hidden_size {width} is no multiple of num_attention_heads {heads}")
    head_dim = keys.size("head_dim", head_dim or width // heads)
    positions = keys.size("max_position_embeddings", max_positions)
    scaling = read_scaling(keys, head_dim=head_dim, max_positions=positions, theta=theta, partial=partial or 1.0)
    if partial is None and scaling.width != head_dim:
        raise CheckpointError("config.json: partial_rotary_factor is not implemented for this family")
    num_layers = keys.size("num_hidden_layers", most=MOST_LAYERS)
    return Config(
        vocab_size=keys.size("vocab_size"),
        width=width,
        inner=keys.size("intermediate_size"),
        num_layers=num_layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        eps=keys.number("rms_norm_eps", eps),
        activation=keys.choice("hidden_act", ACTIVATIONS, "silu"),
        scaling=scaling,
        windows=windows or (None,) * num_layers,
        is_tied=keys.flag("tie_word_embeddings", False),
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        mlp_bias=mlp_bias,
        has_qk_norm=has_qk_norm,
        fuses_gate_up=fuses_gate_up,
    )


def read_layer_windows(keys: Keys, window: int | None) -> tuple[int | None, ...]:
    """One entry a layer by `layer_types`, whose sliding layers see `window` keys. Raises CheckpointError."""
    kinds, num_layers = keys.strings("layer_types"), keys.size("num_hidden_layers", most=MOST_LAYERS)
    if len(kinds) != num_layers or not set(kinds) <= set(LAYER_TYPES):
        raise CheckpointError(f"config.json: layer_types must be {num_layers} of {LAYER_TYPES}, got {kinds}")
    if window is None and "sliding_attention" in kinds:
        raise CheckpointError("config.json: layer_types has sliding_attention, but no sliding_window is set")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


class Attention(nn.Module):
    """Grouped query heads over the sequence so far."""

    reads_together: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj")

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.site, self.head_dim = site, config.head_dim
        self.mask = Mask(is_causal=True, window=config.windows[site])
        width, heads_out, kv_out = config.width, config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = Linear(width, heads_out, bias=config.qkv_bias)
        self.k_proj = Linear(width, kv_out, bias=config.qkv_bias)
        self.v_proj = Linear(width, kv_out, bias=config.qkv_bias)
        self.o_proj = Linear(heads_out, width, bias=config.out_bias)
        self.q_norm = RMSNorm(config.head_dim, config.eps) if config.has_qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.eps) if config.has_qk_norm else nn.Identity()

    def forward(self, x_TM: Tensor, turn: Turn | None, attend: Attend) -> Tensor:
        q_TW, k_TW, v_TW = side_by_side(x_TM, self.q_proj, self.k_proj, self.v_proj)
        q_THD, k_TGD, v_TGD = (x.view(len(x), x.shape[1] // self.head_dim, -1) for x in (q_TW, k_TW, v_TW))
        q_THD, k_TGD = self.q_norm(q_THD), self.k_norm(k_TGD)
        scale = self.head_dim**-0.5
        out_THD = attend.own(self.site, q_THD, k_TGD, v_TGD, mask=self.mask, scale=scale, turn=turn)
        return self.o_proj(out_THD.flatten(1))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); children may call the feed-forward by another name."""

    attention: ClassVar[type[nn.Module]] = Attention
    mlp_name: ClassVar[str] = "mlp"

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.eps)
        self.self_attn = self.attention(config, site)
        self.post_attention_layernorm = RMSNorm(config.width, config.eps)
        setattr(self, self.mlp_name, feed_forward(config, site))

    def forward(self, x_TM: Tensor, turn: Turn | None, attend: Attend) -> Tensor:
        out_TM = self.self_attn(self.input_layernorm(x_TM), turn, attend)
        normed_TM, x_TM = self.post_attention_layernorm.after(out_TM, x_TM)
        return add(x_TM, getattr(self, self.mlp_name)(normed_TM))


def feed_forward(config: Config, site: int) -> nn.Module:
    """The layer's mixture of experts, or its one feed-forward."""
    mixture = config.mixtures[site] if config.mixtures else None
    if mixture is not None:
        return Mixture(config.width, mixture, activation=config.activation)
    gated = FusedGatedMLP if config.fuses_gate_up else GatedMLP
    return gated(config.width, config.inner, activation=config.activation, bias=config.mlp_bias)


class Model(Decoder):
    """Ids to hidden rows, after the final norm."""

    layer: ClassVar[type[Layer]] = Layer
    run: ClassVar[int | None] = None
    """Of the pairs that turn together; None: half a head."""

    def __init__(self, config: Config, heads: Heads) -> None:
        super().__init__(config)
        self.embed_tokens = Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(self.layer(config, site) for site in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.eps)
        self.rotary = Rotary(config.scaling, run=self.run)
        self.add_heads(self.embed_tokens, heads)

    def turn(self, rows: Rows) -> Turn | None:
        """How far each row's queries and keys are turned; None: not at all."""
        return self.rotary(rows)

    def forward(self, rows: Rows, attend: Attend) -> Tensor:
        x_TM = self.embed_tokens(rows.ids_T)
        turn = self.turn(rows)
        for layer in self.layers:
            x_TM = layer(x_TM, turn, attend)
        return self.norm(x_TM)
