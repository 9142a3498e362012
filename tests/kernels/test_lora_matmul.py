"""Rows of many adapters in one product get what each gets alone."""

import pytest
import torch
from torch import Tensor

from closeness import assert_close
from trefoil_kernels.lora_matmul import SideBySide, reference, slots_of

Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def draw(T: int, num_slots: int, dtype: torch.dtype, *, rank: int = 5) -> Case:
    """y, x (whose rows are parts of longer ones), down, up and slots."""
    generator = torch.Generator().manual_seed(T)
    y_TO, x_TM = (torch.randn(T, width, generator=generator).to(dtype) for width in (87, 80))
    down_SRM = torch.randn(num_slots, rank, 75, generator=generator).to(dtype)
    up_SRO = torch.randn(num_slots, rank, 87, generator=generator).to(dtype)
    return y_TO, x_TM[:, :75], down_SRM, up_SRO, torch.randint(-1, num_slots, (T,), generator=generator)


@pytest.mark.parametrize("lay", [slots_of, SideBySide], ids=["as this machine has it", "everywhere"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_slots", [1, 3, 8])
@pytest.mark.parametrize("T", [0, 1, 7, 63])
def test_lora_matmul_matches_reference(T: int, num_slots: int, dtype: torch.dtype, lay: type[SideBySide]) -> None:
    y_TO, x_TM, down_SRM, up_SRO, slots_T = draw(T, num_slots, dtype)
    wanted = reference(y_TO, x_TM, down_SRM, up_SRO, slots_T)
    actual = lay(down_SRM, up_SRO).add(y_TO.clone(), x_TM, slots_T)
    assert actual.dtype == dtype
    assert_close(actual, wanted, dtype)
    assert torch.equal(actual[slots_T < 0], y_TO[slots_T < 0])


@pytest.mark.parametrize("rank", [1, 4, 16, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_row_is_the_same_to_the_bit_whatever_stands_beside_it(dtype: torch.dtype, rank: int) -> None:
    y_TO, x_TM, down_SRM, up_SRO, slots_T = draw(40, 3, dtype, rank=rank)
    slots = slots_of(down_SRM, up_SRO)
    together = slots.add(y_TO.clone(), x_TM, slots_T)
    for row in range(40):
        part = slice(row, row + 1)
        assert torch.equal(slots.add(y_TO[part].clone(), x_TM[part], slots_T[part])[0], together[row])
