"""Products of rows with weights of their own choice are those products, however the choices fall."""

import pytest
import torch
from torch import Tensor

from closeness import assert_close
from trefoil_kernels.grouped_linear import FEW_PAIRS, grouped_linear, in_order, reference

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
NUM, OUTS, WIDTH = 7, 40, 72


def chosen(how: str, rows: int, each: int) -> Tensor:
    """Different weights for each row, in order of pairs."""
    if how == "spread":
        generator = torch.Generator().manual_seed(rows)
        return torch.cat([torch.randperm(NUM, generator=generator)[:each] for _ in range(rows)])
    return torch.tensor([NUM - 1, 0, 3][:each]).repeat(rows)  # all rows the same: most weights meet none


@dtypes
@pytest.mark.parametrize("how", ["spread", "crowded"])
@pytest.mark.parametrize(("rows", "each"), [(1, 3), (5, 1), (33, 3), (90, 2)])
def test_each_pair_gets_its_product(rows: int, each: int, how: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(each)
    x_RM, weights_EFM = (torch.randn(s, generator=generator).to(dtype) for s in ((rows, WIDTH), (NUM, OUTS, WIDTH)))
    choice_P = chosen(how, rows, each)
    ordered = in_order(choice_P, NUM, dtype)
    assert (ordered is None) == (rows * each <= FEW_PAIRS)
    wanted = reference(x_RM.double(), weights_EFM.double(), choice_P)
    assert_close(grouped_linear(x_RM, weights_EFM, choice_P, ordered), wanted.to(dtype))


def test_tiles_are_never_more_than_is_launched() -> None:
    for how, rows, each in (("spread", 64, 3), ("crowded", 64, 3), ("crowded", 40, 1)):
        ordered = in_order(chosen(how, rows, each), NUM, torch.bfloat16)
        assert ordered is not None
        assert int(ordered.tiles_E1[-1]) <= ordered.most_tiles
