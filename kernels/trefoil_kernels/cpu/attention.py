"""Attention over keys and values, packed or in pages, and what is put into pages, by the native library."""

from dataclasses import dataclass

from torch import Tensor

from trefoil_kernels.bias import Bias
from trefoil_kernels.cpu.calls import KINDS, PAGE_KINDS, Calls, addresses
from trefoil_kernels.cpu.structures import Attending, PageCopy, PageWrite, Turning
from trefoil_kernels.masks import Mask

WIDEST_HEAD = 576
"""What the attention keeps on its stack is sized for this: the latent rows of DeepSeek-V2 and V3."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Where the keys and values of each sequence lie, [..., G, D]; both at the same strides and of one of PAGE_KINDS.

    In pages, `table_NP` holds page numbers and `lens_N` counts keys, both int64; else the keys of sequence n follow one
    another from starts_N1[n] (int32) to starts_N1[n + 1].
    """

    k: Tensor
    v: Tensor
    lens_N: Tensor | None = None
    table_NP: Tensor | None = None
    page_size: int = 1
    starts_N1: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Biases:
    """What is added to scores by distance: `by_distance_HS`[h, key - query + offset], float32."""

    by_distance_HS: Tensor
    offset: int


def biases(bias: Bias, longest: int) -> Biases:
    """A bias by distance, for sequences up to this length; laid out for few lengths, as it may be kept."""
    enough = 1 << (longest - 1).bit_length()
    return Biases(bias.within(enough), enough - 1)


def has_side_by_side_heads(x: Tensor) -> bool:
    """Are the heads of a row [..., heads, D] one contiguous run?"""
    return x.stride(-1) == 1 and x.stride(-2) == x.shape[-1]


class Attention:
    """Arguments must be as `library.native_for`, `library.attention_for` and each method say."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def over(
        self, q_THD: Tensor, keys: Keys, starts_N1: Tensor, *, mask: Mask, scale: float, bias: Biases | None = None
    ) -> Tensor:
        """[T, H, D]; sequence n has the query rows from starts_N1[n] (int32) to starts_N1[n + 1].

        Under a causal mask its last row stands at its last key.
        """
        _, heads, width = q_THD.shape
        out_THD = self._calls.empty(q_THD.shape, q_THD.dtype)
        table, added = keys.table_NP, None if bias is None else bias.by_distance_HS
        asked = Attending(
            *addresses(q_THD, keys.k, keys.v, out_THD, starts_N1, keys.lens_N, table, keys.starts_N1, added),
            *(len(starts_N1) - 1, heads, keys.k.shape[-2], width, q_THD.stride(0), keys.k.stride(-3)),
            *(0 if table is None else table.stride(0), keys.page_size, mask.window or 0),
            *((0, 0) if bias is None else (bias.offset, bias.by_distance_HS.stride(0))),
            scale,
            *(KINDS[q_THD.dtype], PAGE_KINDS[keys.k.dtype], mask.is_causal),
        )
        self._calls.ask(asked)
        return out_THD

    def page_write(self, rows_TGD: Tensor, pages_PSGD: Tensor, slots_T: Tensor) -> None:
        """Put each row's heads, which lie side by side, into its slot (int64, contiguous), in the pages' dtype."""
        sizes = len(rows_TGD), rows_TGD.stride(0), rows_TGD.shape[1] * rows_TGD.shape[2]
        kinds = KINDS[rows_TGD.dtype], PAGE_KINDS[pages_PSGD.dtype]
        self._calls.ask(PageWrite(*addresses(rows_TGD, pages_PSGD, slots_T), *sizes, *kinds))

    def rotary_page_write(
        self,
        rows: tuple[Tensor, Tensor, Tensor],
        pages: tuple[Tensor, Tensor],
        angles: tuple[Tensor, Tensor],
        run: int,
        slots_T: Tensor,
    ) -> Tensor:
        """The queries turned; keys, turned too, and values to their slots. Heads lie side by side in each row."""
        q_THD, k_TGD, _ = rows
        num_rows, heads, width = q_THD.shape
        out_THD = self._calls.empty((num_rows, heads, width), q_THD.dtype)
        asked = Turning(
            *addresses(*rows, out_THD, *pages, *angles, slots_T),
            *(num_rows, heads, k_TGD.shape[1], width, angles[0].shape[1], run),
            *(x.stride(0) for x in rows),
            *(KINDS[q_THD.dtype], PAGE_KINDS[pages[0].dtype]),
        )
        self._calls.ask(asked)
        return out_THD

    def page_copy(self, pages_PSGD: Tensor, sources_C: Tensor, targets_C: Tensor) -> None:
        """Copy pages to others (int64, contiguous); no target may be a source, or another's target."""
        tensors = addresses(pages_PSGD, sources_C, targets_C)
        self._calls.ask(PageCopy(*tensors, len(sources_C), pages_PSGD[0].nbytes))
