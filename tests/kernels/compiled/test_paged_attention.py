"""Paged attention compiles without spills at the sizes most in use, with 16-byte asynchronous copies.

benchmarks/kernel_resources.py holds every other variant to the same.
"""

import pytest
import torch

from gpu_compiler import Built, compiling_for
from paged_world import draw
from trefoil_kernels.bias import Bias, RelativeBias
from trefoil_kernels.masks import Mask
from trefoil_kernels.paged_attention import on_triton

pytestmark = pytest.mark.slow

DECODE, CHUNKS = [(1, 5000)], [(2, 9), (7, 7)]


def compiled(
    chip: int | str,
    batch: list[tuple[int, int]],
    H: int,
    G: int,
    D: int,
    *,
    bias: Bias | None = None,
    page_dtype: torch.dtype = torch.bfloat16,
) -> list[Built]:
    world = draw(batch, H, G, D, torch.bfloat16, page_size=16, page_dtype=page_dtype)
    with compiling_for(chip) as built:
        on_triton(world.q_THD, world.pages, world.table, world.packing, mask=Mask.CAUSAL, scale=0.1, bias=bias)
    assert not [kernel for kernel in built if kernel.spills]
    return built


@pytest.mark.parametrize(("chip", "H", "G", "D"), [(80, 14, 2, 64), (90, 32, 8, 128), ("gfx942", 32, 8, 128)])
@pytest.mark.parametrize("batch", [DECODE, CHUNKS], ids=["decode", "chunks"])
def test_models_in_use(chip: int | str, batch: list[tuple[int, int]], H: int, G: int, D: int) -> None:
    built = compiled(chip, batch, H, G, D)
    assert [kernel.name for kernel in built] == (["_attend", "_join"] if batch is DECODE else ["_attend"])
    if isinstance(chip, int):
        assert built[0].count(r"\bHG?MMA\b")
        assert built[0].count(r"LDGSTS\.E\.\S*128")


@pytest.mark.parametrize(("chip", "page_dtype"), [(80, torch.float8_e5m2), (90, torch.float8_e4m3fn)], ids=str)
@pytest.mark.parametrize("batch", [DECODE, CHUNKS], ids=["decode", "chunks"])
def test_pages_of_8_bits(chip: int, page_dtype: torch.dtype, batch: list[tuple[int, int]]) -> None:
    """Copied 16 bytes at a time, too, and made bfloat16 before they are multiplied."""
    built = compiled(chip, batch, 32, 8, 128, page_dtype=page_dtype)
    assert built[0].count(r"LDGSTS\.E\.\S*128")
    assert built[0].count(r"\bHG?MMA\S*BF16")


def test_a_learned_bias() -> None:
    compiled(90, DECODE, 8, 8, 64, bias=RelativeBias(torch.ones(32, 8), 128, is_bidirectional=False))
