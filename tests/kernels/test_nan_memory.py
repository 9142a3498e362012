"""The poison works: what tests call fresh memory is full of NaN."""

import torch


def test_fresh_float_memory_is_nan() -> None:
    like = torch.zeros(3, dtype=torch.bfloat16)
    for fresh in (torch.empty(3), torch.empty_like(like), like.new_empty(3), torch.empty_strided((2, 2), (2, 1))):
        assert fresh.isnan().all()


def test_fresh_integers_and_gradients_still_work() -> None:
    assert torch.empty(3, dtype=torch.int64).shape == (3,)
    assert torch.empty(3, requires_grad=True).requires_grad
