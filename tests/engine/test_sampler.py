"""Choosing tokens: transformers' processors and warpers on the same logits, and the streams' independence."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from trefoil.engine.sampler import Sampler, adjust, draw, token_scores
from trefoil.engine.sequence import Sequence
from trefoil.wire import SamplingParams

VOCAB = 40


def taker(prompt: list[int] = (1,), outputs: list[int] = (), seed: int = 0, **params: Any) -> Sequence:
    return Sequence(
        request_id="a",
        index=0,
        ids=[*prompt, *outputs],
        prompt_len=len(prompt),
        params=SamplingParams(max_tokens=99, **params),
        priority=0,
        arrival=0,
        random=np.random.Generator(np.random.Philox(seed)),
    )


def logits(seed: int = 0, vocab: int = VOCAB) -> Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 3


def possible(logits_V: Tensor, params: SamplingParams) -> set[int]:
    """Every id that some point of the unit interval leads to."""
    return {draw(logits_V, params, (point + 0.5) / 4000) for point in range(4000)}


@pytest.mark.parametrize(
    ("params", "warper"),
    [
        ({"top_k": 5}, TopKLogitsWarper(5)),
        ({"top_p": 0.7}, TopPLogitsWarper(0.7)),
        ({"min_p": 0.1}, MinPLogitsWarper(0.1)),
        ({"typical_p": 0.6}, TypicalLogitsWarper(0.6)),
        ({"top_k": 1}, TopKLogitsWarper(1)),
        ({"top_p": 0.0}, TopKLogitsWarper(1)),
    ],
    ids=["top_k", "top_p", "min_p", "typical_p", "top_k-1", "top_p-0"],
)
def test_a_truncated_choice_keeps_what_transformers_keeps(params: dict[str, Any], warper: Any) -> None:
    for seed in range(3):
        kept = warper(torch.ones(1, 1, dtype=torch.long), logits(seed)[None].clone())[0]
        expected = set(torch.isfinite(kept).nonzero()[:, 0].tolist())
        found = possible(logits(seed), SamplingParams(max_tokens=1, **params))
        probs = kept.softmax(-1)
        assert found <= expected
        assert {token for token in expected if probs[token] > 1e-3} <= found


def test_a_typical_p_below_any_float32_keeps_the_most_typical_token() -> None:
    assert len(possible(logits(), SamplingParams(max_tokens=1, typical_p=1e-310))) == 1


def test_draws_follow_the_distribution() -> None:
    params = SamplingParams(max_tokens=1, temperature=0.7)
    stream = np.random.Generator(np.random.Philox(1))
    count = Counter(draw(logits(), params, stream.random()) for _ in range(4000))
    probs = (logits() / 0.7).softmax(0)
    for token in range(VOCAB):
        assert count[token] / 4000 == pytest.approx(probs[token].item(), abs=0.03)


def test_a_top_p_that_the_first_candidates_do_not_fill_looks_at_all() -> None:
    flat = torch.zeros(2000)
    found = possible(flat, SamplingParams(max_tokens=1, top_p=0.9))
    assert 1790 < len(found) <= 1801


@given(prompt=st.lists(st.integers(0, 5), min_size=1, max_size=12), size=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_no_repeat_ngram_is_that_of_transformers(prompt: list[int], size: int) -> None:
    own = logits()
    adjust(own, taker(prompt, no_repeat_ngram_size=size))
    theirs = NoRepeatNGramLogitsProcessor(size)(torch.tensor([prompt]), logits()[None].clone())[0]
    assert torch.equal(own, theirs)


def test_repetition_penalty_is_that_of_transformers() -> None:
    own = logits()
    adjust(own, taker([3, 4, 3], [7], repetition_penalty=1.7))
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[3, 4, 3, 7]]), logits()[None].clone())[0]
    assert torch.allclose(own, theirs)


def test_presence_and_frequency_count_generated_ids_only() -> None:
    own, before = logits(), logits()
    adjust(own, taker([3, 3], [7, 7, 9], presence_penalty=0.5, frequency_penalty=0.25))
    changed = before.clone()
    changed[7] -= 1.0
    changed[9] -= 0.75
    assert torch.allclose(own, changed)


def test_bias_and_min_tokens() -> None:
    own = torch.zeros(VOCAB)
    adjust(own, taker(outputs=[2], logit_bias={5: 3.0, 6: -100.0}, min_tokens=2, stop_ids=(8, 9)))
    assert own[5] == 3.0
    assert own[6] == -100.0
    assert own[[8, 9]].tolist() == [-torch.inf] * 2
    later = torch.zeros(VOCAB)
    adjust(later, taker(outputs=[2, 2], min_tokens=2, stop_ids=(8,)))
    assert later[8] == 0


def test_scores_are_of_the_models_own_distribution() -> None:
    sampler = Sampler(never=[0, 1], device=torch.device("cpu"))
    own = taker(temperature=0.0, logprobs=2, logit_bias={4: 100.0}, repetition_penalty=2.0)
    (pick,) = sampler.choose(logits()[None], [own])
    raw = logits().log_softmax(0)
    assert pick.token == 4
    assert pick.score is not None
    assert pick.score.logprob == pytest.approx(raw[4].item(), abs=1e-6)
    assert pick.score.rank == int((raw > raw[4]).sum()) + 1
    assert [token for token, _ in pick.score.top] == raw.topk(2).indices.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_rows", [1, 5])
def test_those_who_only_take_the_likeliest_get_it(num_rows: int, dtype: torch.dtype) -> None:
    rows = torch.stack([logits(seed, vocab=1003) for seed in range(num_rows)]).to(dtype)
    never = sorted({int(row.argmax()) for row in rows})
    wanted = rows.index_fill(1, torch.tensor(never), -torch.inf).argmax(1).tolist()
    sampler = Sampler(never=never, device=torch.device("cpu"))
    picks = sampler.choose(rows, [taker(seed=n, temperature=0.0) for n in range(num_rows)])
    assert [pick.token for pick in picks] == wanted


def test_a_row_is_chosen_by_its_own_stream_only() -> None:
    sampler = Sampler(never=[], device=torch.device("cpu"))
    rows = torch.stack([logits(seed) for seed in range(8)])
    together = sampler.choose(rows, [taker(seed=n, temperature=1.0 if n % 2 else 0.0) for n in range(8)])
    for n in range(8):
        (alone,) = sampler.choose(rows[n : n + 1], [taker(seed=n, temperature=1.0 if n % 2 else 0.0)])
        assert alone.token == together[n].token


def test_more_alternatives_than_the_vocabulary_has_are_all_of_it() -> None:
    (score,) = token_scores(logits(vocab=3)[None], [1], 20)
    assert len(score.top) == 3
