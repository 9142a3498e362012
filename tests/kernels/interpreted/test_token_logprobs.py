"""The log-probability kernels give the reference's numbers and gradients, however rows and vocabulary are cut."""

import pytest
import torch
from torch import Tensor

from closeness import assert_agrees, assert_close
from trefoil_kernels import token_logprobs as kernel
from trefoil_kernels.token_logprobs import reference, scored_labels, token_logprobs


def draw(T: int, V: int, M: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(T + V)
    inputs = [torch.randn(n, M, generator=generator).to(dtype).requires_grad_() for n in (T, V)]
    return inputs, torch.randint(V, (T,), generator=generator)


@pytest.mark.parametrize(("T", "V", "M"), [(1, 5, 8), (33, 111, 40), (70, 32, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_token_logprobs_match_reference(
    T: int, V: int, M: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "CHUNK_BYTES", 4 * V * 20)
    inputs, labels_T = draw(T, V, M, dtype)
    assert_agrees(lambda *of: token_logprobs(*of, labels_T), lambda *of: reference(*of, labels_T), inputs)


def test_gradients_alone_for_the_hidden_rows_of_a_frozen_head() -> None:
    (hidden_TM, head_VM), labels_T = draw(5, 33, 16, torch.float32)
    frozen = head_VM.detach()
    assert_agrees(lambda h: token_logprobs(h, frozen, labels_T), lambda h: reference(h, frozen, labels_T), [hidden_TM])


def test_huge_logits_stay_finite() -> None:
    (hidden_TM, head_VM), labels_T = draw(5, 33, 16, torch.float32)
    hidden_TM = 1000 * hidden_TM.detach()
    assert_close(token_logprobs(hidden_TM, head_VM, labels_T), reference(hidden_TM, head_VM, labels_T))


def test_no_rows_give_no_numbers() -> None:
    (hidden_TM, head_VM), labels_T = draw(0, 33, 16, torch.float32)
    token_logprobs(hidden_TM, head_VM, labels_T).sum().backward()
    assert torch.equal(head_VM.grad, torch.zeros_like(head_VM))


def test_the_likeliest_labels_are_told() -> None:
    (hidden_TM, head_VM), labels_T = draw(33, 111, 16, torch.float32)
    best_T = (hidden_TM @ head_VM.T).argmax(1)
    labels_T[::2] = best_T[::2]
    assert torch.equal(scored_labels(hidden_TM, head_VM, labels_T)[1], labels_T == best_T)
