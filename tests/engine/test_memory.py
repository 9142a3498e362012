"""How many pages a budget buys, and who is told when it buys too few."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trefoil.engine.memory import MemoryPlan, free_bytes, plan_memory
from trefoil_models.attend import Site
from trefoil_models.config_keys import CheckpointError

SITES = (Site(2, 64), Site(2, 64), Site(4, 32))
TOKEN_BYTES = 3 * 2 * 128 * 2


def plan(
    budget: int, *, longest: int = 100, seqs: int = 8, page_size: int = 16, dtype: torch.dtype = torch.bfloat16
) -> MemoryPlan:
    return plan_memory(
        SITES,
        page_size=page_size,
        dtype=dtype,
        budget=budget,
        max_model_len=longest,
        max_num_seqs=seqs,
    )


@given(budget=st.integers(0, 10**8), page_size=st.integers(1, 64), longest=st.integers(1, 3000))
def test_a_plan_fits_its_budget_and_holds_a_full_sequence_or_is_refused(
    budget: int, page_size: int, longest: int
) -> None:
    needed = -(-longest // page_size) * page_size * TOKEN_BYTES
    if budget < needed:
        with pytest.raises(CheckpointError, match=f"--kv-cache-memory {needed} "):
            plan(budget, page_size=page_size, longest=longest)
        return
    made = plan(budget, page_size=page_size, longest=longest)
    assert made.page_bytes == page_size * TOKEN_BYTES
    assert made.num_pages * made.page_bytes <= budget
    assert made.full_sequences >= 1


def test_no_more_is_taken_than_all_sequences_can_fill() -> None:
    made = plan(10**12)
    assert made.num_tokens == 8 * 112


def test_half_the_bytes_hold_twice_the_tokens() -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)
    tokens = [plan(300 * 16 * TOKEN_BYTES, seqs=1000, dtype=dtype).num_tokens for dtype in dtypes]
    assert tokens == [150 * 16, 300 * 16, 600 * 16]


def test_too_little_is_refused_with_what_would_do() -> None:
    with pytest.raises(CheckpointError, match=r"1000 bytes .* --kv-cache-memory 172032 or lower --max-model-len"):
        plan(1000)


def test_free_memory_is_a_number_of_bytes() -> None:
    assert 2**20 < free_bytes(torch.device("cpu")) < 2**50
