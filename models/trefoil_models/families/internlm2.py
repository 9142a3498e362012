"""InternLM 2 and 2.5 (`internlm2`; Cai et al., arXiv 2403.17297): llama under names of its own.

One projection makes queries, keys and values. Its rows lie by KV head: the queries that read it, its key, its value.
The reward models call their one output `v_head`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn

from trefoil_kernels.add import add
from trefoil_kernels.masks import Mask
from trefoil_kernels.rotary import Turn
from trefoil_models.attend import Attend, Rows
from trefoil_models.config_keys import Keys, divided
from trefoil_models.decoder import Decoder
from trefoil_models.families import llama
from trefoil_models.families.llama import read_dense
from trefoil_models.heads import Heads
from trefoil_models.layers import Embedding, GatedMLP, Linear, RMSNorm
from trefoil_models.rotary_scaling import Rotary


@dataclass(frozen=True, slots=True)
class Config(llama.Config):
    """Llama's; ranks share the projection by KV heads."""

    def divided(self, ranks: int) -> Self:
        """One rank's. Raises Indivisible."""
        divided("num_key_value_heads", self.kv_heads, ranks)
        return llama.Config.divided(self, ranks)


def read_config(keys: Keys) -> Config:
    """InternLM 2's own keys and defaults: `bias` is of the attention's projections. Raises CheckpointError."""
    has_bias = keys.flag("bias", True)
    return Config.of(read_dense(keys, qkv_bias=has_bias, out_bias=has_bias))


class Attention(nn.Module):
    """Grouped query heads over the sequence so far."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.site, self.head_dim, self.kv_heads = site, config.head_dim, config.kv_heads
        self.wqkv = Linear(config.width, (config.heads + 2 * config.kv_heads) * config.head_dim, bias=config.qkv_bias)
        self.wo = Linear(config.heads * config.head_dim, config.width, bias=config.out_bias)

    def forward(self, x_TM: Tensor, turn: Turn, attend: Attend) -> Tensor:
        groups = self.wqkv(x_TM).view(len(x_TM), self.kv_heads, -1, self.head_dim)  # [T, G, H / G + 2, D]
        q_THD = groups[:, :, :-2].flatten(1, 2)
        k_TGD, v_TGD = groups[:, :, -2].contiguous(), groups[:, :, -1].contiguous()
        scale = self.head_dim**-0.5
        out_THD = attend.own(self.site, q_THD, k_TGD, v_TGD, mask=Mask.CAUSAL, scale=scale, turn=turn)
        return self.wo(out_THD.flatten(1))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.eps)
        self.attention = Attention(config, site)
        self.ffn_norm = RMSNorm(config.width, config.eps)
        self.feed_forward = GatedMLP(
            config.width, config.inner, activation=config.activation, bias=False, names=("w1", "w3", "w2")
        )

    def forward(self, x_TM: Tensor, turn: Turn, attend: Attend) -> Tensor:
        out_TM = self.attention(self.attention_norm(x_TM), turn, attend)
        normed_TM, x_TM = self.ffn_norm.after(out_TM, x_TM)
        return add(x_TM, self.feed_forward(normed_TM))


class Model(Decoder):
    """Ids to hidden rows, after the final norm."""

    vocab_matrix: ClassVar[str] = "output.weight"
    aliases: ClassVar[Mapping[str, str]] = {"v_head.weight": "score.weight"}

    def __init__(self, config: Config, heads: Heads) -> None:
        super().__init__(config)
        self.tok_embeddings = Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config, site) for site in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.eps)
        self.rotary = Rotary(config.scaling)
        self.add_heads(self.tok_embeddings, heads)

    def forward(self, rows: Rows, attend: Attend) -> Tensor:
        x_TM = self.tok_embeddings(rows.ids_T)
        turn = self.rotary(rows)
        for layer in self.layers:
            x_TM = layer(x_TM, turn, attend)
        return self.norm(x_TM)
