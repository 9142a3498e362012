"""Rows of a table and sums of rows: the native path gives torch's numbers to the bit."""

import pytest
import torch

from trefoil_kernels.add import add
from trefoil_kernels.lookup import lookup, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lookup_and_add_give_what_torch_gives(dtype: torch.dtype) -> None:
    table_VM, ids_T = torch.randn(17, 63).to(dtype), torch.tensor([16, 0, 3, 3])
    rows_TM = lookup(ids_T, table_VM)
    assert rows_TM.equal(reference(ids_T, table_VM))
    assert add(rows_TM, rows_TM.flip(0)).equal(rows_TM + rows_TM.flip(0))
    assert lookup(ids_T[:0], table_VM).shape == (0, 63)


def test_gradients_flow_through_both() -> None:
    table_VM = torch.randn(5, 7, requires_grad=True)
    rows_TM = lookup(torch.tensor([2, 2, 4]), table_VM)
    add(rows_TM, rows_TM).sum().backward()
    assert table_VM.grad is not None
    assert table_VM.grad.sum(1).tolist() == [0, 0, 28, 0, 14]


@pytest.mark.parametrize("wrong", [-1, 5])
def test_an_id_without_a_row_is_refused(wrong: int) -> None:
    with pytest.raises(IndexError):
        lookup(torch.tensor([0, wrong]), torch.zeros(5, 7))
