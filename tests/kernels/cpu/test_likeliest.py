"""The native pass over logits finds what torch's log-softmax and sort find."""

import pytest
import torch

from trefoil_kernels.cpu.library import Native


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("width", "count"), [(5, 5), (16, 1), (1003, 8), (32128, 24)])
def test_log_probabilities_and_ids_are_those_of_a_stable_sort(
    width: int, count: int, dtype: torch.dtype, library: Native
) -> None:
    logits_NV = (torch.randn(7, width, generator=torch.Generator().manual_seed(width)) * 4).to(dtype)
    logits_NV[3] += 90  # no sum may overflow
    never = torch.arange(1, width, 3)
    wanted_NV = logits_NV.float().log_softmax(-1)
    wanted_NV[:, never] = -torch.inf
    values_NC, ids_NC = (x[:, :count] for x in wanted_NV.sort(descending=True, stable=True))
    logprobs_NC, found_NC = library.rowwise.likeliest(logits_NV, count, never)
    is_real = values_NC > -torch.inf
    assert torch.equal(found_NC[is_real], ids_NC[is_real])
    torch.testing.assert_close(logprobs_NC, values_NC, rtol=1e-6, atol=1e-5)


def test_entries_without_any_probability_are_minus_infinity(library: Native) -> None:
    logits_NV = torch.full((2, 40), -torch.inf)
    logits_NV[:, 33] = 2.0
    logprobs_NC, ids_NC = library.rowwise.likeliest(logits_NV, 3, torch.tensor([], dtype=torch.int64))
    assert ids_NC[:, 0].tolist() == [33, 33]
    assert logprobs_NC.tolist() == [[0.0, -torch.inf, -torch.inf]] * 2
