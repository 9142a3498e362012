"""Row-wise kernels compile for every chip we claim, without spills, at the widths of models in use."""

import pytest
import torch
from torch import Tensor

from gpu_compiler import Built, compiling_for
from trefoil_kernels import gated_act, grouped_linear, layer_norm, linear, page_write, rms_norm
from trefoil_kernels.float8 import rounded_rows

pytestmark = pytest.mark.slow


def assert_lean(built: list[Built], num_kernels: int) -> None:
    assert len(built) == num_kernels
    assert not [kernel.name for kernel in built if kernel.spills]


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bfloat16, requires_grad=True)


@pytest.mark.parametrize(("chip", "width"), [(80, 128), (90, 8192)])
def test_norms(chip: int | str, width: int) -> None:
    x, weight_M, bias_M = ones(3, width), ones(width), ones(width)
    with compiling_for(chip) as built:
        rms_norm.on_triton(x, None, weight_M, 1e-5)[0].sum().backward()
        rms_norm.on_triton(x, x, weight_M, 1e-5)[0].sum().backward()
        layer_norm.on_triton(x, weight_M, bias_M, 1e-5).sum().backward()
    assert_lean(built, 6)


@pytest.mark.parametrize(("chip", "activation"), [(90, "silu"), ("gfx942", "gelu")])
def test_gated_act(chip: int | str, activation: str) -> None:
    with compiling_for(chip) as built:
        gated_act.on_triton(ones(3, 11008), ones(3, 11008), activation).sum().backward()
    assert_lean(built, 2)


@pytest.mark.parametrize(
    ("chip", "G", "D", "page_dtype"),
    [(80, 2, 64, torch.bfloat16), (90, 32, 128, torch.bfloat16), (90, 8, 128, torch.float8_e4m3fn)],
    ids=str,
)
def test_page_write(chip: int | str, G: int, D: int, page_dtype: torch.dtype) -> None:
    pages = page_write.new_pages(2, 16, G, D, dtype=page_dtype, device=torch.device("cpu"))
    with compiling_for(chip) as built:
        page_write.on_triton(pages, ones(3, G, D), ones(3, G, D), torch.arange(3))
    assert_lean(built, 1)


@pytest.mark.parametrize(("chip", "rows"), [(80, 2), (90, 60), ("gfx942", 600)])
def test_products_with_weights_of_the_rows_choice(chip: int | str, rows: int) -> None:
    weights_EFM, choice_P = torch.empty(8, 1536, 2048, dtype=torch.bfloat16), torch.arange(4 * rows) % 8
    with compiling_for(chip) as built:
        ordered = grouped_linear.in_order(choice_P, 8, torch.bfloat16)
        grouped_linear.grouped_linear(ones(rows, 2048).detach(), weights_EFM, choice_P, ordered)
    assert_lean(built, 1)


@pytest.mark.parametrize(("chip", "shape"), [(80, (4096, 4096)), (90, (28672, 4096)), (90, (151936, 896))])
def test_one_row_products(chip: int | str, shape: tuple[int, int]) -> None:
    with compiling_for(chip) as built:
        linear.on_triton(ones(1, shape[1]), torch.empty(shape, dtype=torch.bfloat16))
    assert_lean(built, 1)


@pytest.mark.parametrize(("chip", "shape"), [(80, (4096, 4096)), (90, (28672, 4096)), ("gfx942", (4096, 14336))])
def test_one_row_by_weights_of_8_bit_floats(chip: int | str, shape: tuple[int, int]) -> None:
    """Hopper converts them itself, 16 bytes of a copy at a time; older chips decode bytes."""
    codes_FM, scales_F = torch.empty(shape, dtype=torch.float8_e4m3fn), torch.ones(shape[0])
    with compiling_for(chip) as built:
        linear.on_triton(ones(1, shape[1]), codes_FM, None, scales_F)
    assert_lean(built, 1)
    if isinstance(chip, int):
        assert bool(built[0].count(r"F2FP?\.F16\.E4M3")) == (chip == 90)
        assert built[0].count(r"LDGSTS\.E\.\S*128")


@pytest.mark.parametrize(("chip", "rows"), [(80, 60), (90, 2), (90, 60), (90, 600)])
def test_experts_of_8_bit_floats(chip: int, rows: int) -> None:
    codes_EFM, choice_P = torch.empty(8, 1536, 2048, dtype=torch.float8_e4m3fn), torch.arange(4 * rows) % 8
    with compiling_for(chip) as built:
        ordered = grouped_linear.in_order(choice_P, 8, torch.bfloat16)
        grouped_linear.grouped_linear(ones(rows, 2048).detach(), codes_EFM, choice_P, ordered, torch.ones(8, 1536))
    assert_lean(built, 1)


def test_rows_rounded_to_8_bits() -> None:
    with compiling_for(90) as built:
        rounded_rows(ones(60, 14336).detach())
    assert_lean(built, 1)
