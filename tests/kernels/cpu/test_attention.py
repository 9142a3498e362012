"""Native attention where only it has cases: many keys for few rows, large groups, wide heads, and torch without it."""

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from closeness import assert_close
from trefoil_kernels.bias import Alibi, RelativeBias
from trefoil_kernels.cpu import library
from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention import Packing, packed_attention, reference


def draw(lens: tuple[int, ...], H: int, G: int, D: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(H * D)
    return tuple(torch.randn(sum(lens), heads, D, generator=generator).to(dtype) for heads in (H, G, G))


def assert_same(q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, lens: tuple[int, ...], mask: Mask = Mask.CAUSAL) -> None:
    args = q_THD, k_TGD, v_TGD, Packing(lens)
    assert_close(packed_attention(*args, mask=mask, scale=0.2), reference(*args, mask=mask, scale=0.2))


@pytest.mark.parametrize("mask", [Mask.FULL, Mask.CAUSAL], ids=["full", "causal"])
def test_few_rows_over_many_keys_are_split_along_the_keys(mask: Mask) -> None:
    lens = (3000,)
    q_THD, k_TGD, v_TGD = draw(lens, 2, 1, 16)
    keys = None if mask.is_causal else Packing(lens)
    rows = lens if mask.is_causal else (1,)
    args = q_THD[: sum(rows)], k_TGD, v_TGD, Packing(rows)
    actual = packed_attention(*args, mask=mask, scale=0.2, keys=keys)
    assert_close(actual, reference(*args, mask=mask, scale=0.2, keys=keys))


@pytest.mark.parametrize(("H", "G"), [(71, 1), (50, 1), (96, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_groups_larger_than_a_tile(H: int, G: int, dtype: torch.dtype) -> None:
    assert_same(*draw((5, 1, 40), H, G, 8, dtype), lens=(5, 1, 40))


@pytest.mark.parametrize("D", [1, 17, 80, 192, 256, 576])
def test_every_head_width_up_to_the_widest(D: int) -> None:
    assert_same(*draw((33, 2), 3, 3, D), lens=(33, 2))


def test_a_wider_head_goes_to_torch_and_is_said_once() -> None:
    library._say_too_wide.cache_clear()
    with capture_logs() as lines:
        for _ in range(2):
            assert_same(*draw((5, 2), 2, 1, 584), lens=(5, 2))
    assert [(line["event"], line["head_dim"]) for line in lines] == [("native_attention_off", 584)]


@pytest.mark.parametrize("scale", [0.2, 50.0])
def test_scores_far_apart_stay_finite(scale: float) -> None:
    args = *draw((40, 3), 2, 2, 8), Packing((40, 3))
    assert_close(
        packed_attention(*args, mask=Mask.CAUSAL, scale=scale), reference(*args, mask=Mask.CAUSAL, scale=scale)
    )


@pytest.mark.parametrize("mask", [Mask.FULL, Mask.CAUSAL, Mask(window=3)], ids=["full", "causal", "window"])
@pytest.mark.parametrize("kind", ["none", "relative", "alibi"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torch_without_the_library_gives_the_same(
    mask: Mask, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    table_BH = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    relative = RelativeBias(table_BH, max_distance=20, is_bidirectional=not mask.is_causal)
    bias = {"none": None, "relative": relative, "alibi": Alibi(torch.linspace(0.1, 1, 4))}[kind]
    args = *draw((40, 1, 17, 16), 4, 2, 24, dtype), Packing((40, 1, 17, 16))
    native = packed_attention(*args, mask=mask, scale=0.2, bias=bias)
    monkeypatch.setattr(library, "native", lambda: None)
    assert_close(native, packed_attention(*args, mask=mask, scale=0.2, bias=bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("D", [12, 32, 80])
def test_sequences_longer_than_a_span_of_keys(D: int, dtype: torch.dtype) -> None:
    lens = (1100, 6, 513)
    for mask in (Mask.FULL, Mask.CAUSAL, Mask(window=70)):
        assert_same(*draw(lens, 4, 2, D, dtype), lens, mask)
