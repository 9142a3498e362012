"""Paged attention compiles without spills for every variant that serving launches, with 16-byte asynchronous copies."""

import pytest
import torch

from gpu_compiler import Built, compiling_for
from paged_world import draw
from trefoil_kernels.bias import Alibi, Bias, RelativeBias
from trefoil_kernels.masks import Mask
from trefoil_kernels.paged_attention import on_triton

DECODE, CHUNKS = [(1, 5000)], [(2, 9), (7, 7)]
BIASES = {"alibi": Alibi(torch.ones(8)), "relative": RelativeBias(torch.ones(32, 8), 128, is_bidirectional=False)}
chips = pytest.mark.parametrize("chip", [80, 90, "gfx942"])


def compiled(
    chip: int | str,
    batch: list[tuple[int, int]],
    H: int,
    G: int,
    D: int,
    *,
    mask: Mask = Mask.CAUSAL,
    dtype: torch.dtype = torch.bfloat16,
    bias: Bias | None = None,
) -> list[Built]:
    world = draw(batch, H, G, D, dtype, page_size=16)
    with compiling_for(chip) as built:
        on_triton(world.q_THD, world.pages, world.table, world.packing, mask=mask, scale=0.1, bias=bias)
    assert not [kernel for kernel in built if kernel.spills]
    return built


@chips
@pytest.mark.parametrize(("H", "G", "D"), [(14, 2, 64), (32, 8, 128)])
@pytest.mark.parametrize("batch", [DECODE, CHUNKS], ids=["decode", "chunks"])
def test_models_in_use(chip: int | str, batch: list[tuple[int, int]], H: int, G: int, D: int) -> None:
    built = compiled(chip, batch, H, G, D)
    assert [kernel.name for kernel in built] == (["_attend", "_join"] if batch is DECODE else ["_attend"])
    if isinstance(chip, int):
        assert built[0].count(r"\bHG?MMA\b")
        assert built[0].count(r"LDGSTS\.E\.\S*128")


@pytest.mark.parametrize("batch", [DECODE, CHUNKS], ids=["decode", "chunks"])
@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
def test_biases(batch: list[tuple[int, int]], bias: Bias) -> None:
    compiled(90, batch, 8, 8, 64, bias=bias)


@pytest.mark.parametrize("batch", [DECODE, CHUNKS], ids=["decode", "chunks"])
def test_windows_wide_heads_odd_heads_and_float32(batch: list[tuple[int, int]]) -> None:
    compiled(90, batch, 8, 2, 128, mask=Mask(window=4096))
    compiled(80, batch, 8, 8, 256)
    compiled(80, batch, 12, 12, 96)
    compiled(90, batch, 8, 2, 128, dtype=torch.float32)
