"""Rotary frequency tables of every published scaling: plain, linear, dynamic NTK, YaRN (arXiv 2309.00071), LLaMA 3.

A row's frequencies may depend on its sequence's length (dynamic NTK). They then follow from max(prompt length,
position + 1): a prompt is rotated with its own length and each generated token with the length it makes, however
the prompt was cut into chunks. Qwen 1's kind, "doubling", stays with the prompt's length throughout.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trefoil_kernels.rotary import Turn, angles, reference_angles
from trefoil_models.attend import Rows
from trefoil_models.config_keys import CheckpointError, Keys

KINDS = ("default", "linear", "dynamic", "yarn", "llama3")
COMMON_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
KEYS_OF = {
    "default": {"factor"},
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
}
INERT_KEYS = {"finetuned"}


@dataclass(frozen=True, slots=True)
class Scaling:
    """The rotary settings of one checkpoint, read from either config dialect."""

    kind: str
    width: int
    theta: float
    factor: float
    max_positions: int
    original_max_positions: int
    low_freq_factor: float
    high_freq_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool
    attention_factor: float
    mscale_all_dim: float = 0.0

    @property
    def softmax_factor(self) -> float:
        """What YaRN multiplies the scale of scores by where attention heeds `mscale_all_dim`, as DeepSeek's does."""
        return _m(self.factor, self.mscale_all_dim) ** 2

    @property
    def longest(self) -> int:
        """How many positions the scaling was made for."""
        if self.kind in ("linear", "dynamic"):
            return int(self.max_positions * self.factor)
        if self.kind == "yarn":
            return max(self.max_positions, int(self.original_max_positions * self.factor))
        return self.max_positions

    @property
    def pivot(self) -> int | None:
        """Beyond this length the frequencies depend on the length."""
        return self.max_positions if self.kind in ("dynamic", "doubling") else None


def read_scaling(
    keys: Keys, *, head_dim: int, max_positions: int, theta: float = 10000.0, partial: float = 1.0
) -> Scaling:
    """Read `rope_scaling` with `rope_theta`, or `rope_parameters` (transformers 5).

    `theta` and `partial`, the part of a head that turns, are the family's defaults. Where a file has both objects,
    `rope_scaling` wins, and so does `original_max_position_embeddings` beside the object over the one inside, as in
    transformers. Raises CheckpointError naming an unknown scaling or a key that is not implemented or makes no sense.
    """
    older = keys.inside("rope_scaling")
    rope = older if older.values else keys.inside("rope_parameters")
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "mrope" or kind not in KINDS:
        raise CheckpointError(f"config.json: {rope.path}rope_type = {kind!r} is not implemented; known: {KINDS}")
    for name in rope.values:
        if name in rope and name not in COMMON_KEYS | KEYS_OF[kind] | INERT_KEYS:
            rope.refuse(name)
    original = keys.size(
        "original_max_position_embeddings", rope.size("original_max_position_embeddings", max_positions)
    )
    where = rope if "partial_rotary_factor" in rope else keys
    scaling = Scaling(
        kind=kind,
        width=turning_width(where, "partial_rotary_factor", partial, head_dim),
        theta=rope.number("rope_theta", keys.number("rope_theta", theta)),
        factor=_factor(rope, kind, max_positions / original),
        max_positions=max_positions,
        original_max_positions=original,
        low_freq_factor=rope.number("low_freq_factor", None if kind == "llama3" else 1.0),
        high_freq_factor=rope.number("high_freq_factor", None if kind == "llama3" else 1.0),
        beta_fast=rope.number("beta_fast", 32.0) or 32.0,
        beta_slow=rope.number("beta_slow", 1.0) or 1.0,
        truncate=rope.flag("truncate", True),
        attention_factor=_attention_factor(rope, kind, max_positions / original),
        mscale_all_dim=rope.number("mscale_all_dim", 0.0),
    )
    _check(scaling)
    return scaling


def turning_width(keys: Keys, name: str, default: float, head_dim: int) -> int:
    """How much of a head turns, by a key that tells its part. Raises CheckpointError."""
    part = keys.number(name, default)
    if not 0 < part <= 1:
        raise CheckpointError(f"{keys.file}: {keys.path}{name} = {part} must be above 0 and at most 1")
    return int(head_dim * part)


def plain_scaling(kind: str, *, width: int, theta: float, max_positions: int, factor: float = 1.0) -> Scaling:
    """The settings of a family whose config.json says them in words of its own. Raises CheckpointError."""
    scaling = Scaling(
        kind=kind,
        width=width,
        theta=theta,
        factor=factor,
        max_positions=max_positions,
        original_max_positions=max_positions,
        low_freq_factor=1.0,
        high_freq_factor=1.0,
        beta_fast=32.0,
        beta_slow=1.0,
        truncate=True,
        attention_factor=1.0,
    )
    _check(scaling)
    return scaling


def _check(scaling: Scaling) -> None:
    """Refuse what would divide by zero or take the logarithm of nothing."""
    wrongs = {
        f"rope_theta = {scaling.theta} must be above 1": scaling.theta <= 1,
        f"factor = {scaling.factor} must be above 0": scaling.factor <= 0,
        f"the rotary width must be even and at least 2, not {scaling.width}": scaling.width < 2
        or scaling.width % 2 == 1,
        "dynamic scaling needs a rotary width above 2": scaling.pivot is not None and scaling.width == 2,
        "beta_fast and beta_slow must be above 0": min(scaling.beta_fast, scaling.beta_slow) <= 0,
        "high_freq_factor must be above low_freq_factor": scaling.kind == "llama3"
        and scaling.high_freq_factor <= scaling.low_freq_factor,
    }
    for wrong, is_so in wrongs.items():
        if is_so:
            raise CheckpointError(f"config.json: rotary positions: {wrong}")


def _factor(rope: Keys, kind: str, implied: float) -> float:
    return rope.number("factor", {"default": 1.0, "yarn": implied}.get(kind))


def _attention_factor(rope: Keys, kind: str, implied: float) -> float:
    """What YaRN multiplies cos and sin by: m(factor, mscale) / m(factor, mscale_all_dim), or m(factor, 1)."""
    if kind != "yarn":
        return 1.0
    if "attention_factor" in rope:
        return rope.number("attention_factor")
    factor = _factor(rope, kind, implied)
    mscale, mscale_all = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    return _m(factor, mscale) / _m(factor, mscale_all) if mscale and mscale_all else _m(factor, 1.0)


def _m(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


class Rotary(nn.Module):
    """Positions to cosines and sines, float32 whatever the weights are, for pairs of this run (None: half a head)."""

    inv_freq_R: Tensor

    def __init__(self, scaling: Scaling, *, run: int | None = None) -> None:
        super().__init__()
        self.scaling, self.run = scaling, run or scaling.width // 2
        # on the CPU by name: a model may be built on the meta device, and this table is not in any file
        self.register_buffer("inv_freq_R", _inv_freq(scaling), persistent=False)

    def forward(self, rows: Rows) -> Turn:
        """The turn of each row."""
        pivot, factor = self.scaling.pivot, self.scaling.attention_factor
        if pivot is None:
            return Turn(*angles(rows.positions_T, self.inv_freq_R, factor), self.run)
        return Turn(*reference_angles(rows.positions_T, self._frequencies(rows, pivot), factor), self.run)

    def _frequencies(self, rows: Rows, pivot: int) -> Tensor:
        """[T, R/2], as they depend on the length L: the base times g^(d / (d - 2)) beyond M, and there

        g = f L/M - (f - 1), or 2^ceil(log2(L/M) + 1) - 1 where it doubles.
        """
        scaling = self.scaling
        if scaling.kind == "doubling":
            lens_T = rows.prompt_lens_T.clamp(min=pivot).double()
            growth_T = 2 ** ((lens_T / pivot).log2().ceil() + 1) - 1
        else:
            lens_T = rows.prompt_lens_T.maximum(rows.positions_T + 1).clamp(min=pivot).double()
            growth_T = scaling.factor * lens_T / pivot - (scaling.factor - 1)
        base_T = scaling.theta * growth_T ** (scaling.width / (scaling.width - 2))
        return 1.0 / base_T[:, None].float() ** _exponents(scaling.width, base_T.device)


def _exponents(width: int, device: torch.device | str = "cpu") -> Tensor:
    return torch.arange(0, width, 2, dtype=torch.int64, device=device).float() / width


def _inv_freq(scaling: Scaling) -> Tensor:
    inv_freq_R = 1.0 / scaling.theta ** _exponents(scaling.width)
    if scaling.kind == "linear":
        return inv_freq_R / scaling.factor
    if scaling.kind == "yarn":
        return _yarn(scaling, inv_freq_R)
    if scaling.kind == "llama3":
        return _llama3(scaling, inv_freq_R)
    return inv_freq_R


def _yarn(scaling: Scaling, inv_freq_R: Tensor) -> Tensor:
    """Interpolated below `low`, as trained above `high`, a ramp between (arXiv 2309.00071, section 3.2)."""

    def dimension(rotations: float) -> float:
        ratio = scaling.original_max_positions / (rotations * 2 * math.pi)
        return scaling.width * math.log(ratio) / (2 * math.log(scaling.theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, scaling.width - 1)
    span = high - low or 0.001
    ramp_R = ((torch.arange(scaling.width // 2, dtype=torch.float32, device="cpu") - low) / span).clamp(0, 1)
    return inv_freq_R / scaling.factor * ramp_R + inv_freq_R * (1 - ramp_R)


def _llama3(scaling: Scaling, inv_freq_R: Tensor) -> Tensor:
    """Long waves slowed by the factor, short ones kept, smooth between (LLaMA 3.1 release)."""
    turns_R = scaling.original_max_positions * inv_freq_R / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep_R = ((turns_R - low) / (high - low)).clamp(0, 1)
    return (1 - keep_R) * inv_freq_R / scaling.factor + keep_R * inv_freq_R
