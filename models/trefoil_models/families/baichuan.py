"""Baichuan 1 and 2 (`baichuan`; Yang et al., arXiv 2309.10305): llama with one projection for q, k and v.

One name for four architectures, told apart by config.json: the models of 7B turn their heads, those of 13B have a bias
by distance (ALiBi) instead; Baichuan 2 brings the rows of its head's matrix to unit length.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from trefoil_kernels.bias import Alibi
from trefoil_kernels.masks import Mask
from trefoil_kernels.rotary import Turn
from trefoil_models.attend import Attend, Rows
from trefoil_models.config_keys import Indivisible, Keys
from trefoil_models.families import llama
from trefoil_models.heads import Heads, NormHead
from trefoil_models.layers import FusedLinear, Linear

FIRST_VOCAB, SECOND_VOCAB = 64000, 125696


@dataclass(frozen=True, slots=True)
class Config(llama.Config):
    """Llama's, and which of the four it is."""

    has_alibi: bool = False
    has_norm_head: bool = False

    def divided(self, ranks: int) -> Self:
        """One rank's, where heads turn: a slope is of one head among all. Raises Indivisible."""
        if self.has_alibi and ranks > 1:
            raise Indivisible("a bias by distance is not sliced")
        return llama.Config.divided(self, ranks)


def read_config(keys: Keys) -> Config:
    """The 13B models say `model_max_length` where the 7B models say `max_position_embeddings`."""
    has_alibi = "max_position_embeddings" not in keys
    longest = keys.size("model_max_length") if has_alibi else keys.size("max_position_embeddings")
    dense = llama.read_dense(keys, max_positions=longest)
    return Config.of(dense, has_alibi=has_alibi, has_norm_head=_is_second(keys, has_alibi=has_alibi))


def _is_second(keys: Keys, *, has_alibi: bool) -> bool:
    """Is it Baichuan 2? By the released vocabularies, else by a key of its own, else by the 7B class's new spelling."""
    vocab_size = keys.size("vocab_size")
    if vocab_size in (FIRST_VOCAB, SECOND_VOCAB):
        return vocab_size == SECOND_VOCAB
    return "z_loss_weight" in keys or (not has_alibi and "BaichuanForCausalLM" in keys.strings("architectures", []))


def slopes(heads: int) -> Tensor:
    """ALiBi's, for any number of heads: 2^(-8 h / n) for n heads, filled up with every second of those for 2 n."""
    whole = 2 ** math.floor(math.log2(heads))
    steps = [-8 * (head + 1) / whole for head in range(whole)]
    steps += [-8 * (head + 1) / (2 * whole) for head in range(0, 2 * (heads - whole), 2)]
    return torch.tensor([2**step for step in steps], device="cpu")


class Attention(nn.Module):
    """Every head has keys and values of its own; nearness counts by turning or by the bias."""

    slopes_H: Tensor | None

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.site, self.heads, self.head_dim = site, config.heads, config.head_dim
        self.W_pack = FusedLinear(config.width, *(config.heads * config.head_dim,) * 3, bias=False)
        self.o_proj = Linear(config.heads * config.head_dim, config.width, bias=False)
        self.register_buffer("slopes_H", slopes(config.heads) if config.has_alibi else None, persistent=False)

    def forward(self, x_TM: Tensor, turn: Turn | None, attend: Attend) -> Tensor:
        q_THD, k_THD, v_THD = self.W_pack(x_TM).unflatten(-1, (3, self.heads, -1)).unbind(1)
        bias, scale = None if self.slopes_H is None else Alibi(self.slopes_H), self.head_dim**-0.5
        out_THD = attend.own(self.site, q_THD, k_THD, v_THD, mask=Mask.CAUSAL, scale=scale, bias=bias, turn=turn)
        return self.o_proj(out_THD.flatten(1))


class Layer(llama.Layer):
    """Llama's, with this attention."""

    attention: ClassVar[type[nn.Module]] = Attention


class Model(llama.Model):
    """Llama's, of these layers."""

    layer: ClassVar[type[llama.Layer]] = Layer
    config: Config

    def __init__(self, config: Config, heads: Heads) -> None:
        super().__init__(config, heads)
        if config.has_norm_head:
            self.lm_head = NormHead(self.lm_head.weight)

    def turn(self, rows: Rows) -> Turn | None:
        return None if self.config.has_alibi else super().turn(rows)
