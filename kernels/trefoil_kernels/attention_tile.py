"""What the attention kernels share: a running softmax over tiles of keys, biases by distance, tile sizes by chip.

Scores are kept in base 2: log2(e) is folded into the scale, so that exp2 serves. Hidden keys score HIDDEN, which is
finite: a tile that is hidden as a whole leaves weights that the next real tile scales to zero. It is a power of two,
so that its product with any scale is exact: the peak is that product rounded, the weights take it unrounded (one fused
multiply-add), and what lies between would be a difference of 1e22, whose exp2 is infinite.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from trefoil_kernels.bias import Alibi, Bias, RelativeBias

LOG2E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-(2.0**100))
WIDEST_HEAD = 256
LARGEST_GROUP = 128


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and keys of one matmul tile, warps that work on it, key tiles in flight.

    `registers`: the most a thread may have, where a few more than that would let fewer programs share a processor.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None

    @property
    def constants(self) -> dict[str, int]:
        """As the kernels name them."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {"BLOCK_M": self.rows, "BLOCK_N": self.keys, "STAGES": self.stages, "num_warps": self.warps, **limit}


@dataclass(frozen=True, slots=True)
class KernelBias:
    """A bias as the kernels read it: `values` is a slope per head, or [H, 2 * reach + 1] numbers by distance."""

    kind: str
    values: Tensor
    reach: int
    source: RelativeBias | None = None


def kernel_bias(bias: Bias | None, stand_in: Tensor) -> KernelBias:
    """`stand_in` goes where no bias does. Differentiable in a learned table."""
    if bias is None:
        return KernelBias("none", stand_in.detach(), 0)
    if isinstance(bias, Alibi):
        return KernelBias("alibi", bias.slopes_H.detach().float().contiguous(), 0)
    return KernelBias("relative", bias.by_distance(), bias.max_distance, bias)


def padded_width(head_dim: int) -> int:
    """Heads are computed at the next power of two that a matmul takes."""
    return max(16, triton.next_power_of_2(head_dim))


@triton.jit
def fold(scores, factor, v, out, peak, total, offset=0.0):
    """One more tile of keys into a running softmax of `scores * factor + offset`.

    Scores are [rows, keys], v [keys, D], out [rows, D]. The factor, above zero, meets the peak in one multiply-add.
    """
    new_peak = tl.maximum(peak, tl.max(scores, 1) * factor + offset)
    weights = tl.math.exp2(scores * factor - (new_peak - offset)[:, None])
    shrink = tl.math.exp2(peak - new_peak)
    out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision="ieee")
    return out, new_peak, total * shrink + tl.sum(weights, 1)


@triton.jit
def biased(scores, factor, values, head, ahead, reach, BIAS: tl.constexpr):
    """Scores plus the bias of `ahead` = key - query [rows, keys], and what is left to multiply them by.

    `head` is a number per row, or one for all. Without a bias the factor is left over.
    """
    if BIAS == "none":
        return scores, factor
    if BIAS == "alibi":
        added = tl.load(values + head) * ahead.to(tl.float32)
    else:
        at = tl.minimum(tl.maximum(ahead, -reach), reach) + reach
        added = tl.load(values + head * (2 * reach + 1) + at)
    return scores * factor + added * LOG2E, 1.0


@triton.jit
def seen(ahead, window, CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """May the query see the key `ahead` of it? Mask.seen, [rows, keys]."""
    result = ahead <= 0 if CAUSAL else ahead == ahead
    if HAS_WINDOW:
        result &= ahead > -window
    return result
