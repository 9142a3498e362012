"""Log-probabilities without the logits equal those with them, gradients too, however the rows are chunked."""

import pytest
import torch
from torch import Tensor

from closeness import assert_close
from trefoil_kernels import token_logprobs as kernel
from trefoil_kernels.token_logprobs import reference, row_chunks, token_logprobs

V, M = 111, 16
rows = pytest.mark.parametrize("T", [0, 1, 5, 63])
chunks = pytest.mark.parametrize("rows_each", [1, 4, 1000])


def draw(T: int, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T)
    hidden_TM, head_VM = (torch.randn(n, M, generator=generator).to(device, dtype) for n in (T, V))
    labels_T = torch.randint(V, (T,), generator=generator).to(device)
    return hidden_TM.requires_grad_(), head_VM.requires_grad_(), labels_T


def assert_same(hidden_TM: Tensor, head_VM: Tensor, labels_T: Tensor) -> None:
    actual, wanted = (f(hidden_TM, head_VM, labels_T) for f in (token_logprobs, reference))
    assert actual.dtype == torch.float32
    assert_close(actual, wanted, hidden_TM.dtype)
    direction = torch.randn(len(labels_T), generator=torch.Generator().manual_seed(1)).to(wanted)
    grads = [torch.autograd.grad(out, [hidden_TM, head_VM], direction) for out in (actual, wanted)]
    for got, want in zip(*grads, strict=True):
        assert_close(got, want)


@rows
@chunks
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_token_logprobs_match_reference(
    T: int, rows_each: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "CHUNK_BYTES", 4 * V * rows_each)
    assert_same(*draw(T, dtype))


def test_gradients_alone_for_the_hidden_rows_of_a_frozen_head() -> None:
    hidden_TM, head_VM, labels_T = draw(5, torch.float32)
    frozen_VM = head_VM.detach()
    (got,) = torch.autograd.grad(token_logprobs(hidden_TM, frozen_VM, labels_T).sum(), hidden_TM)
    (want,) = torch.autograd.grad(reference(hidden_TM, frozen_VM, labels_T).sum(), hidden_TM)
    assert_close(got, want)


def test_huge_logits_stay_finite() -> None:
    hidden_TM, head_VM, labels_T = draw(5, torch.float32)
    assert_close(token_logprobs(1000 * hidden_TM, head_VM, labels_T), reference(1000 * hidden_TM, head_VM, labels_T))


def test_row_chunks_cover_every_row_once_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "CHUNK_BYTES", 4 * V * 10)
    covered = [list(range(63))[chunk] for chunk in row_chunks(63, V)]
    assert [row for chunk in covered for row in chunk] == list(range(63))
    assert max(len(chunk) for chunk in covered) == 10
    assert row_chunks(2, 10**9) == [slice(0, 1), slice(1, 2)]  # a row that does not fit goes alone


@pytest.mark.gpu
def test_token_logprobs_match_reference_on_gpu(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "CHUNK_BYTES", 4 * V * 100)
    assert_same(*draw(1111, torch.bfloat16, gpu))
