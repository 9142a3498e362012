"""GPT-2 (`gpt2`; Radford et al. 2019): pre-norm LayerNorm, learned positions, one fused projection for q, k and v.

Files store the linear weights as (in, out); `transposed` names them.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn

from trefoil_kernels.add import add
from trefoil_kernels.gated_act import ACTIVATIONS
from trefoil_kernels.masks import Mask
from trefoil_models.attend import Attend, Rows
from trefoil_models.config_keys import MOST_LAYERS, CheckpointError, Keys, divided_plainly
from trefoil_models.decoder import Decoder
from trefoil_models.heads import Heads
from trefoil_models.layers import Embedding, FusedLinear, LayerNorm, Linear, PlainMLP


@dataclass(frozen=True, slots=True)
class Config:
    """The checkpoint keys that the mathematics needs; `windows` has an entry a layer where any layer has a window."""

    vocab_size: int
    width: int
    inner: int
    num_layers: int
    heads: int
    head_dim: int
    longest: int
    eps: float
    activation: str
    is_tied: bool
    scales_by_width: bool
    scales_by_layer: bool
    windows: tuple[int | None, ...] = ()
    length_pivot: None = None

    @property
    def kv_heads(self) -> int:
        return self.heads

    def divided(self, ranks: int) -> Self:
        """One rank's: fewer heads, a narrower feed-forward. Raises Indivisible."""
        return divided_plainly(self, ranks)


def read_config(keys: Keys) -> Config:
    """GPT-2's own keys and defaults; the usual names are read too, as transformers does. Raises CheckpointError."""
    keys.refuse("add_cross_attention", False)
    width = keys.size("n_embd", keys.size("hidden_size", 768))
    heads = keys.size("n_head", keys.size("num_attention_heads", 12))
    if width % heads:
        raise CheckpointError(f"config.json: n_embd {width} is no multiple of n_head {heads}")
    return Config(
        vocab_size=keys.size("vocab_size", 50257),
        width=width,
        inner=keys.size("n_inner", 4 * width),
        num_layers=keys.size("n_layer", keys.size("num_hidden_layers", 12), most=MOST_LAYERS),
        heads=heads,
        head_dim=width // heads,
        longest=keys.size("n_positions", keys.size("max_position_embeddings", keys.size("n_ctx", 1024))),
        eps=keys.number("layer_norm_epsilon", 1e-5),
        activation=keys.choice("activation_function", ACTIVATIONS, "gelu_new"),
        is_tied=keys.flag("tie_word_embeddings", True),
        scales_by_width=keys.flag("scale_attn_weights", True),
        scales_by_layer=keys.flag("scale_attn_by_inverse_layer_idx", False),
    )


class Attention(nn.Module):
    """Causal attention, its scale as the flags say."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.site, self.heads = site, config.heads
        self.mask = Mask(is_causal=True, window=config.windows[site] if config.windows else None)
        by_width = config.head_dim**-0.5 if config.scales_by_width else 1.0
        self.scale = by_width / (site + 1) if config.scales_by_layer else by_width
        heads_out = config.heads * config.head_dim
        self.c_attn = FusedLinear(config.width, heads_out, heads_out, heads_out)
        self.c_proj = Linear(heads_out, config.width)

    def forward(self, x_TM: Tensor, attend: Attend) -> Tensor:
        q_THD, k_THD, v_THD = self.c_attn(x_TM).unflatten(-1, (3, self.heads, -1)).unbind(1)
        out_THD = attend.own(self.site, q_THD, k_THD, v_THD, mask=self.mask, scale=self.scale)
        return self.c_proj(out_THD.flatten(1))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    attention: ClassVar[type[nn.Module]] = Attention

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.width, config.eps)
        self.attn = self.attention(config, site)
        self.ln_2 = LayerNorm(config.width, config.eps)
        self.mlp = PlainMLP(config.width, config.inner, activation=config.activation)

    def forward(self, x_TM: Tensor, attend: Attend) -> Tensor:
        x_TM = add(x_TM, self.attn(self.ln_1(x_TM), attend))
        return add(x_TM, self.mlp(self.ln_2(x_TM)))


class Model(Decoder):
    """Ids to hidden rows, after the final norm."""

    layer: ClassVar[type[Layer]] = Layer
    base_prefix: ClassVar[str] = "transformer."
    transposed: ClassVar[frozenset[str]] = frozenset(
        {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}
    )

    def __init__(self, config: Config, heads: Heads) -> None:
        super().__init__(config)
        self.wte = Embedding(config.vocab_size, config.width)
        self.wpe = Embedding(config.longest, config.width)
        self.h = nn.ModuleList(self.layer(config, site) for site in range(config.num_layers))
        self.ln_f = LayerNorm(config.width, config.eps)
        self.add_heads(self.wte, heads)

    def forward(self, rows: Rows, attend: Attend) -> Tensor:
        x_TM = add(self.wte(rows.ids_T), self.wpe(rows.positions_T))
        for layer in self.h:
            x_TM = layer(x_TM, attend)
        return self.ln_f(x_TM)
