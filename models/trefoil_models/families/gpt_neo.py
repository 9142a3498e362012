"""GPT-Neo (`gpt_neo`; Black et al. 2021): gpt2 whose layers see everything and a window by turns, as GPT-3's do.

Its scores are not scaled, its projections stand apart, and its files store linear weights as they are.
"""

from typing import ClassVar

from torch import Tensor, nn

from trefoil_kernels.gated_act import ACTIVATIONS
from trefoil_kernels.masks import Mask
from trefoil_models.attend import Attend
from trefoil_models.config_keys import MOST_LAYERS, CheckpointError, Keys
from trefoil_models.families import gpt2
from trefoil_models.families.gpt2 import Config
from trefoil_models.layers import Linear, side_by_side

__all__ = ["Config", "Model", "layer_windows", "read_config"]

KINDS = ("global", "local")


def read_config(keys: Keys) -> Config:
    """GPT-Neo's own keys and defaults. Raises CheckpointError."""
    width, heads = keys.size("hidden_size", 2048), keys.size("num_heads", 16)
    if width % heads:
        raise CheckpointError(f"config.json: hidden_size {width} is no multiple of num_heads {heads}")
    num_layers = keys.size("num_layers", 24, most=MOST_LAYERS)
    return Config(
        vocab_size=keys.size("vocab_size", 50257),
        width=width,
        inner=keys.size("intermediate_size", 4 * width),
        num_layers=num_layers,
        heads=heads,
        head_dim=width // heads,
        longest=keys.size("max_position_embeddings", 2048),
        eps=keys.number("layer_norm_epsilon", 1e-5),
        activation=keys.choice("activation_function", ACTIVATIONS, "gelu_new"),
        is_tied=keys.flag("tie_word_embeddings", True),
        scales_by_width=False,
        scales_by_layer=False,
        windows=layer_windows(keys, _spelled_out(keys, num_layers)),
    )


def layer_windows(keys: Keys, kinds: list[str]) -> tuple[int | None, ...]:
    """One entry a layer: local ones see `window_size` keys."""
    window = keys.size("window_size", 256)
    return tuple(window if kind == "local" else None for kind in kinds)


def _spelled_out(keys: Keys, num_layers: int) -> list[str]:
    """`attention_types`, runs of kinds and how often each comes, as one kind a layer."""
    runs = keys.values.get("attention_types") or [[list(KINDS), 12]]
    try:
        kinds = [kind for run, times in runs for _ in range(min(times, MOST_LAYERS)) for kind in run]
    except (TypeError, ValueError):
        kinds = []
    if len(kinds) != num_layers or not all(kind in KINDS for kind in kinds):
        raise CheckpointError(f"config.json: attention_types = {runs!r} does not name {num_layers} of {KINDS}")
    return kinds


class SelfAttention(nn.Module):
    """Causal attention without a scale, its three projections without biases."""

    reads_together: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj")

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.site, self.heads = site, config.heads
        self.mask = Mask(is_causal=True, window=config.windows[site])
        heads_out = config.heads * config.head_dim
        self.q_proj = Linear(config.width, heads_out, bias=False)
        self.k_proj = Linear(config.width, heads_out, bias=False)
        self.v_proj = Linear(config.width, heads_out, bias=False)
        self.out_proj = Linear(heads_out, config.width)

    def forward(self, x_TM: Tensor, attend: Attend) -> Tensor:
        projected = side_by_side(x_TM, self.q_proj, self.k_proj, self.v_proj)
        q_THD, k_THD, v_THD = (x_TW.view(len(x_TW), self.heads, -1) for x_TW in projected)
        return self.out_proj(attend.own(self.site, q_THD, k_THD, v_THD, mask=self.mask, scale=1.0).flatten(1))


class Attention(nn.Module):
    """The room that files put the attention in."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.attention = SelfAttention(config, site)

    def forward(self, x_TM: Tensor, attend: Attend) -> Tensor:
        out_TM: Tensor = self.attention(x_TM, attend)
        return out_TM


class Layer(gpt2.Layer):
    """GPT-2's, with this attention."""

    attention: ClassVar[type[nn.Module]] = Attention


class Model(gpt2.Model):
    """GPT-2's, of these layers."""

    layer: ClassVar[type[gpt2.Layer]] = Layer
    transposed: ClassVar[frozenset[str]] = frozenset()
