"""Packed attention compiles without spills, forward and backward, at the sizes most in use.

On sm_90 through warp-group matmuls and the tensor memory accelerator, on sm_80 through 16-byte asynchronous copies.
benchmarks/kernel_resources.py holds every other variant to the same.
"""

import pytest
import torch

from gpu_compiler import Built, compiling_for
from trefoil_kernels.bias import Bias, RelativeBias
from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention import Packing, on_triton

pytestmark = pytest.mark.slow


def compiled(
    chip: int | str,
    D: int,
    *,
    mask: Mask = Mask.CAUSAL,
    dtype: torch.dtype = torch.bfloat16,
    bias: Bias | None = None,
) -> dict[str, Built]:
    qkv = [torch.zeros(9, n, D, dtype=dtype, requires_grad=True) for n in (4, 2, 2)]
    with compiling_for(chip) as built:
        on_triton(*qkv, Packing((9,)), mask=mask, scale=0.1, bias=bias).sum().backward()
    assert not [kernel for kernel in built if kernel.spills]
    assert [kernel.name for kernel in built] == ["_forward", "_query_gradients", "_key_gradients"]
    return {kernel.name: kernel for kernel in built}


def test_hopper_multiplies_by_warp_group_what_its_memory_accelerator_fetches() -> None:
    built = compiled(90, 128)
    assert all(kernel.count(r"\bHGMMA\b") for kernel in built.values())
    assert built["_forward"].count(r"\bUTMALDG\b")
    assert not built["_forward"].count(r"\bHMMA\b")


def test_ampere_copies_16_bytes_at_a_time_while_it_multiplies() -> None:
    built = compiled(80, 64)
    assert all(kernel.count(r"\bHMMA\b") for kernel in built.values())
    assert all(built[name].count(r"LDGSTS\.E\.\S*128") for name in ("_forward", "_query_gradients"))


@pytest.mark.parametrize("chip", [80, 90])
def test_a_learned_bias_fits_in_smaller_tiles(chip: int) -> None:
    table_BH = torch.ones(32, 4, requires_grad=True)
    compiled(chip, 64, mask=Mask.FULL, bias=RelativeBias(table_BH, 128, is_bidirectional=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_widest_heads_fit(dtype: torch.dtype) -> None:
    compiled(80, 256, dtype=dtype)


def test_amd() -> None:
    compiled("gfx942", 128)
