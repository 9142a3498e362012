"""Rows of many adapters in one product get what each gets alone."""

import pytest
import torch

from closeness import assert_close
from trefoil_kernels.lora_matmul import lora_matmul, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_slots", [1, 3, 8])
@pytest.mark.parametrize("T", [0, 1, 7, 63])
def test_lora_matmul_matches_reference(T: int, num_slots: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(T)
    x_TM = torch.randn(T, 33, generator=generator).to(dtype)
    down_MSR = torch.randn(33, num_slots, 5, generator=generator).to(dtype)
    up_SRO = torch.randn(num_slots, 5, 17, generator=generator).to(dtype)
    slots_T = torch.randint(-1, num_slots, (T,), generator=generator)
    actual, wanted = (f(x_TM, down_MSR, up_SRO, slots_T) for f in (lora_matmul, reference))
    assert actual.dtype == dtype
    assert_close(actual, wanted, dtype)
    assert not actual[slots_T < 0].any()
