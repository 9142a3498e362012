"""One row's product by the kernel is the product, whatever the sizes."""

import pytest
import torch

from closeness import assert_close
from trefoil_kernels.linear import linear

dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (16, 512), (33, 1030), (48, 1024)], ids=str)
def test_one_row(shape: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    x_TM, weight_FM, bias_F = (
        torch.randn(size, generator=generator).to(dtype) for size in ((1, shape[1]), shape, (shape[0],))
    )
    wanted = x_TM.double() @ weight_FM.double().T
    assert_close(linear(x_TM, weight_FM), wanted.to(dtype))
    assert_close(linear(x_TM, weight_FM, bias_F), (wanted + bias_F.double()).to(dtype))
