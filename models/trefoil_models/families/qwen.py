"""Qwen 1 (`qwen`; Bai et al., arXiv 2309.16609): llama's mathematics under names near GPT-2's.

Prompts longer than `seq_length` are read by two remedies of its own: rotary bases that double with the prompt's length,
and queries that grow with the logarithm of their position. The release learns without both and answers with them; here
a row is read alike in either case.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn

from trefoil_kernels.add import add
from trefoil_kernels.masks import Mask
from trefoil_kernels.rotary import Turn
from trefoil_models.attend import Attend, Rows
from trefoil_models.config_keys import MOST_LAYERS, CheckpointError, Keys, divided_plainly
from trefoil_models.decoder import Decoder
from trefoil_models.heads import Heads
from trefoil_models.layers import Embedding, FusedLinear, GatedMLP, Linear, RMSNorm
from trefoil_models.rotary_scaling import Rotary, Scaling, plain_scaling, turning_width


@dataclass(frozen=True, slots=True)
class Config:
    """The checkpoint keys that the mathematics needs; `sharpens_beyond`: from there on queries grow."""

    vocab_size: int
    width: int
    inner: int
    num_layers: int
    heads: int
    head_dim: int
    longest: int
    eps: float
    has_bias: bool
    scaling: Scaling
    sharpens_beyond: int | None
    is_tied: bool

    @property
    def kv_heads(self) -> int:
        return self.heads

    def divided(self, ranks: int) -> Self:
        """One rank's: fewer heads, a narrower feed-forward. Raises Indivisible."""
        return divided_plainly(self, ranks)

    @property
    def length_pivot(self) -> int | None:
        return self.scaling.pivot


def read_config(keys: Keys) -> Config:
    """The keys of the release of September 2023, or those of August, which have other names and defaults."""
    keys.refuse("apply_residual_connection_post_layernorm", False)
    is_older = "n_embd" in keys
    width, heads = keys.size(*_named("hidden_size", keys, 4096)), keys.size(*_named("num_attention_heads", keys, 32))
    head_dim = keys.size("kv_channels", 128)
    if heads * head_dim != width:
        raise CheckpointError(f"config.json: {heads} heads of kv_channels {head_dim} do not make the width {width}")
    longest = keys.size(*_named("max_position_embeddings", keys, 8192))
    pivot = keys.size("seq_length", longest)
    if pivot < 2:
        raise CheckpointError(f"config.json: seq_length = {pivot} must be at least 2")
    return Config(
        vocab_size=keys.size("padded_vocab_size", keys.size("vocab_size")),
        width=width,
        inner=keys.size(*_named("intermediate_size", keys, 22016)) // 2,
        num_layers=keys.size(*_named("num_hidden_layers", keys, 32), most=MOST_LAYERS),
        heads=heads,
        head_dim=head_dim,
        longest=longest,
        eps=keys.number("layer_norm_epsilon", 1e-5 if is_older else 1e-6),
        has_bias=not keys.flag("no_bias", True),
        scaling=plain_scaling(
            "doubling" if keys.flag("use_dynamic_ntk", not is_older) else "default",
            width=turning_width(keys, "rotary_pct", 1.0, head_dim),
            theta=keys.number("rotary_emb_base", 10000.0),
            max_positions=pivot,
        ),
        sharpens_beyond=pivot if keys.flag("use_logn_attn", not is_older) else None,
        is_tied=keys.flag("tie_word_embeddings", False),
    )


OLDER_NAMES = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "ffn_hidden_size",
}


def _named(name: str, keys: Keys, default: int) -> tuple[str, int]:
    """The key by whichever name the file has for it, and its default."""
    return (OLDER_NAMES[name] if OLDER_NAMES[name] in keys else name), default


@dataclass(frozen=True, slots=True)
class Places:
    """What a row's position means: how far its heads turn, and how much its query grows, [T, 1, 1]."""

    turn: Turn
    growth_T11: Tensor | None


class Attention(nn.Module):
    """One projection makes queries, keys and values, each a third; it alone always has a bias."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.site, self.heads, self.head_dim = site, config.heads, config.head_dim
        heads_out = config.heads * config.head_dim
        self.c_attn = FusedLinear(config.width, heads_out, heads_out, heads_out)
        self.c_proj = Linear(heads_out, config.width, bias=config.has_bias)

    def forward(self, x_TM: Tensor, places: Places, attend: Attend) -> Tensor:
        q_THD, k_THD, v_THD = self.c_attn(x_TM).unflatten(-1, (3, self.heads, -1)).unbind(1)
        if places.growth_T11 is not None:
            q_THD = q_THD * places.growth_T11.to(q_THD.dtype)
        scale = self.head_dim**-0.5
        out_THD = attend.own(self.site, q_THD, k_THD, v_THD, mask=Mask.CAUSAL, scale=scale, turn=places.turn)
        return self.c_proj(out_THD.flatten(1))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(config.width, config.eps)
        self.attn = Attention(config, site)
        self.ln_2 = RMSNorm(config.width, config.eps)
        self.mlp = GatedMLP(
            config.width, config.inner, activation="silu", bias=config.has_bias, names=("w2", "w1", "c_proj")
        )

    def forward(self, x_TM: Tensor, places: Places, attend: Attend) -> Tensor:
        out_TM = self.attn(self.ln_1(x_TM), places, attend)
        normed_TM, x_TM = self.ln_2.after(out_TM, x_TM)
        return add(x_TM, self.mlp(normed_TM))


class Model(Decoder):
    """Ids to hidden rows, after the final norm."""

    base_prefix: ClassVar[str] = "transformer."

    def __init__(self, config: Config, heads: Heads) -> None:
        super().__init__(config)
        self.wte = Embedding(config.vocab_size, config.width)
        self.h = nn.ModuleList(Layer(config, site) for site in range(config.num_layers))
        self.ln_f = RMSNorm(config.width, config.eps)
        self.rotary = Rotary(config.scaling)
        self.add_heads(self.wte, heads)

    def growth(self, rows: Rows) -> Tensor | None:
        """log(p) / log(n) for the query of place p, counted from 1, behind the first n; 1 among these."""
        first = self.config.sharpens_beyond
        if first is None:
            return None
        places_T = (rows.positions_T + 1).clamp(min=first)
        return (places_T.double().log() / math.log(first)).float()[:, None, None]

    def forward(self, rows: Rows, attend: Attend) -> Tensor:
        x_TM = self.wte(rows.ids_T)
        places = Places(self.rotary(rows), self.growth(rows))
        for layer in self.h:
            x_TM = layer(x_TM, places, attend)
        return self.ln_f(x_TM)
