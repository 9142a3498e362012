"""DeepSeek-V2 and V2-Lite (`deepseek_v2`; arXiv 2405.04434): DeepSeek-MoE's experts, and attention to latent rows.

Multi-head latent attention (section 2.1): all heads' keys and values are linear in one short row a token, beside which
stands one key part that turns. What is kept of a token is that row.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from trefoil_kernels.masks import Mask
from trefoil_kernels.rotary import Turn, rotary
from trefoil_models.attend import Attend, Rows, Site
from trefoil_models.config_keys import CheckpointError, Keys
from trefoil_models.families import llama
from trefoil_models.families.deepseek import in_deep_layers, shared_inner
from trefoil_models.layers import Linear, MatrixLinear, RMSNorm, low_ranks, side_by_side, weight_of
from trefoil_models.mixture import MixtureShape, read_choice
from trefoil_models.routing import SoftmaxTop

INNER_EPS = 1e-6
"""Of the norms within the attention, whatever `rms_norm_eps` says."""


@dataclass(frozen=True, slots=True)
class LatentShape:
    """The widths of latent attention; `query_rank` is None where queries come straight from their row."""

    query_rank: int | None
    rank: int
    plain: int
    turning: int
    value: int
    scale: float
    has_bias: bool
    is_interleaved: bool = True


@dataclass(frozen=True, slots=True)
class Config(llama.Config):
    """Llama's, whose head width is that of the part that turns."""

    attention: LatentShape = field(kw_only=True)


def read_config(keys: Keys) -> Config:
    """DeepSeek-V2's own keys and defaults. Raises CheckpointError."""
    num_experts, top_k = read_choice(keys, "n_routed_experts", num_experts=64)
    inner = keys.size("moe_intermediate_size", 1407)
    method = keys.choice("topk_method", ("greedy", "group_limited_greedy"), "greedy")
    groups, kept = read_groups(keys, num_experts) if method == "group_limited_greedy" else (1, 1)
    keys.refuse("scoring_func", "softmax")
    mixture = MixtureShape(
        num_experts,
        inner,
        SoftmaxTop(
            top_k, is_normalised=False, scale=keys.number("routed_scaling_factor", 1.0), groups=groups, kept_groups=kept
        ),
        shared_inner=shared_inner(keys, inner, 2),
    )
    return read_latent(keys, in_deep_layers(keys, mixture), max_positions=2048, mlp_bias=keys.flag("mlp_bias", False))


def read_groups(keys: Keys, num_experts: int, *, smallest: int = 1) -> tuple[int, int]:
    """How many groups the experts stand in, and in how many of them a row may look. Raises CheckpointError.

    `smallest`: how many experts of a group its rank is told by.
    """
    groups, kept = keys.size("n_group"), keys.size("topk_group")
    if num_experts % groups or num_experts // groups < smallest or kept > groups:
        raise CheckpointError(
            f"config.json: n_group {groups} must divide n_routed_experts {num_experts} into groups of {smallest} or "
            f"more, and be at least topk_group {kept}"
        )
    return groups, kept


def read_latent(
    keys: Keys,
    mixtures: tuple[MixtureShape | None, ...],
    *,
    max_positions: int,
    mlp_bias: bool = False,
    is_interleaved: bool = True,
) -> Config:
    """The keys of latent attention, with the given mixtures. Raises CheckpointError."""
    plain, turning = keys.size("qk_nope_head_dim", 128), keys.size("qk_rope_head_dim", 64)
    own = Keys({**keys.values, "head_dim": turning, "num_key_value_heads": None})
    dense = llama.read_dense(own, max_positions=max_positions, mlp_bias=mlp_bias)
    attention = LatentShape(
        query_rank=None if keys.is_null("q_lora_rank") else keys.size("q_lora_rank", 1536),
        rank=keys.size("kv_lora_rank", 512),
        plain=plain,
        turning=turning,
        value=keys.size("v_head_dim", 128),
        scale=(plain + turning) ** -0.5 * dense.scaling.softmax_factor,
        has_bias=keys.flag("attention_bias", False),
        is_interleaved=is_interleaved,
    )
    return Config.of(dense, mixtures=mixtures, attention=attention)


class LatentAttention(nn.Module):
    """Heads whose keys and values are made of latent rows; it tells an Attend how (`LatentHeads`)."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        shape = config.attention
        self.site, self.heads, self.shape = site, config.heads, shape
        q_out, kv_out = config.heads * (shape.plain + shape.turning), config.heads * (shape.plain + shape.value)
        if shape.query_rank is None:
            self.q_proj = Linear(config.width, q_out, bias=False)
        else:
            self.q_a_proj = Linear(config.width, shape.query_rank, bias=shape.has_bias)
            self.q_a_layernorm = RMSNorm(shape.query_rank, INNER_EPS)
            self.q_b_proj = Linear(shape.query_rank, q_out, bias=False)
        self.kv_a_proj_with_mqa = Linear(config.width, shape.rank + shape.turning, bias=shape.has_bias)
        self.kv_a_layernorm = RMSNorm(shape.rank, INNER_EPS)
        self.kv_b_proj = MatrixLinear(shape.rank, kv_out, bias=False)
        self.o_proj = Linear(config.heads * shape.value, config.width, bias=shape.has_bias)
        self.first_proj = "q_proj" if shape.query_rank is None else "q_a_proj"
        self.reads_together = (self.first_proj, "kv_a_proj_with_mqa")

    def forward(self, x_TM: Tensor, turn: Turn, attend: Attend) -> Tensor:
        shape = self.shape
        q_TW, latent_TR = side_by_side(x_TM, getattr(self, self.first_proj), self.kv_a_proj_with_mqa)
        if shape.query_rank is not None:
            q_TW = self.q_b_proj(self.q_a_layernorm(q_TW))
        plain_THD, turning_THD = torch.split(self._by_head(q_TW), [shape.plain, shape.turning], -1)
        row_TR, turning_TR = torch.split(latent_TR, [shape.rank, shape.turning], -1)
        q_THD = torch.cat([plain_THD, rotary(turning_THD, turn)], -1)
        latent_TR = torch.cat([self.kv_a_layernorm(row_TR), rotary(turning_TR[:, None], turn)[:, 0]], -1)
        out_THV = attend.latent(self.site, q_THD, latent_TR, self, mask=Mask.CAUSAL, scale=shape.scale)
        return self.o_proj(out_THV.flatten(1))

    def expanded(self, latent_TR: Tensor) -> tuple[Tensor, Tensor]:
        """Every head's keys and values; the part that turns is the same for all."""
        row_TR, turning_TR = torch.split(latent_TR, [self.shape.rank, self.shape.turning], -1)
        both_THD = self._by_head(self.kv_b_proj(row_TR.contiguous()))
        plain_THD, v_THV = torch.split(both_THD, [self.shape.plain, self.shape.value], -1)
        return torch.cat([plain_THD, turning_TR[:, None].expand(-1, self.heads, -1)], -1), v_THV

    def absorbed(self, q_THD: Tensor) -> Tensor:
        """q . (W row) = (W^T q) . row"""
        plain_THD, turning_THD = torch.split(q_THD, [self.shape.plain, self.shape.turning], -1)
        plain = slice(0, self.shape.plain)
        own_THR = torch.einsum("thd,rhd->thr", plain_THD, self._by_head(weight_of(self.kv_b_proj).T)[..., plain])
        for low in low_ranks(self.kv_b_proj):
            up_SLHD = self._by_head(low.up_SRO)[..., plain]
            low_THSL = low.own(torch.einsum("thd,slhd->thsl", plain_THD, up_SLHD))
            own_THR = own_THR + torch.einsum("thsl,slr->thr", low_THSL, low.down_SRM)
        return torch.cat([own_THR, turning_THD], -1)

    def values(self, mean_THR: Tensor) -> Tensor:
        """mean(W row) = W mean(row)"""
        row_THR, value = mean_THR[..., : self.shape.rank], slice(self.shape.plain, None)
        own_THV = torch.einsum("thr,rhv->thv", row_THR, self._by_head(weight_of(self.kv_b_proj).T)[..., value])
        for low in low_ranks(self.kv_b_proj):
            low_THSL = low.own(torch.einsum("thr,slr->thsl", row_THR, low.down_SRM))
            own_THV = own_THV + torch.einsum("thsl,slhv->thv", low_THSL, self._by_head(low.up_SRO)[..., value])
        return own_THV

    def _by_head(self, x: Tensor) -> Tensor:
        """The last axis as one for heads and one for each head's numbers."""
        by_head: Tensor = torch.unflatten(x, -1, (self.heads, -1))
        return by_head


class Layer(llama.Layer):
    """Llama's, with latent attention."""

    attention: ClassVar[type[nn.Module]] = LatentAttention


class Model(llama.Model):
    """Llama's, of these layers; a site keeps one latent row a token."""

    layer: ClassVar[type[llama.Layer]] = Layer
    config: Config

    def turn(self, rows: Rows) -> Turn | None:
        turn = super().turn(rows)
        return replace(turn, run=1) if turn is not None and self.config.attention.is_interleaved else turn

    @property
    def sites(self) -> tuple[Site, ...]:
        shape = self.config.attention
        return (Site(1, shape.rank + shape.turning, is_latent=True),) * self.config.num_layers
