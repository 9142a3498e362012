"""Requests through scheduler and model: the same answers whatever else happens, and those of transformers."""

import random
from pathlib import Path

import pytest
import torch

import tiny
from engine_world import answers, finish, generator, request, run
from trefoil import wire

PROMPT_LENS = (1, 3, 4, 5, 17, 31, 32, 33)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("llama"), "llama")


def greedy(folder: Path, ids: list[int], count: int) -> list[int]:
    """transformers' own continuation."""
    with torch.no_grad():
        out = tiny.oracle(folder).generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
    return [int(token) for token in out[0, len(ids) :]]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_32_greedy_tokens_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    folder = tiny.checkpoint(tmp_path, family, **({"sliding_window": 9} if family == "mistral" else {}))
    prompts = tiny.draw_ids(*PROMPT_LENS)
    got = run(generator(folder), [request(str(n), ids, 32) for n, ids in enumerate(prompts)])
    assert [got[str(n), 0] for n in range(len(prompts))] == [greedy(folder, ids, 32) for ids in prompts]


def test_a_greedy_answer_is_the_same_alone_and_in_a_batch_of_32(llama: Path) -> None:
    dice = random.Random(1)
    prompts = tiny.draw_ids(*(dice.randint(1, 60) for _ in range(32)))
    asked = [
        request(str(n), ids, dice.randint(1, 40), **({"temperature": 1.0, "top_p": 0.9} if n % 4 == 3 else {}))
        for n, ids in enumerate(prompts)
    ]
    together = run(generator(llama), asked)
    for one in asked:
        if not one.params.temperature:
            assert run(generator(llama), [one])[one.id, 0] == together[one.id, 0]


@pytest.mark.parametrize("pages", [24, 40, 512])
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_pre_empted_is_not_pre_empted_and_a_prefix_hit_is_a_miss(llama: Path, pages: int, prefix_caching: bool) -> None:
    shared, *tails = tiny.draw_ids(21, 1, 2, 3, 9, 14, 20)
    asked = [request(str(n), shared + tail, 24) for n, tail in enumerate(tails)]
    engine = generator(llama, pages=pages, seqs=6, rows=16, prefix_caching=prefix_caching)
    got = [run(engine, asked) for _ in range(2)]
    totals = engine.scheduler.totals
    assert (totals.preemptions > 0) == (pages < 512)
    assert (totals.prefix_hits > 0) == prefix_caching
    alone = {one.id: run(generator(llama), [one])[one.id, 0] for one in asked}
    for answer in got:
        assert {name: ids for (name, _), ids in answer.items()} == alone


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_n_answers_are_the_same_forked_or_computed_apart(llama: Path, rows: int) -> None:
    (ids,) = tiny.draw_ids(18)
    asked = request("n", ids, 12, temperature=1.0, seed=5, n=4)
    forked = run(generator(llama, rows=rows, seqs=rows if rows == 1 else 8), [asked])
    apart = run(generator(llama, prefix_caching=False, seqs=1), [asked])
    assert forked == apart
    assert len({tuple(answer) for answer in forked.values()}) == 4


def test_a_seed_gives_the_same_tokens_in_any_batch(llama: Path) -> None:
    ids, *others = tiny.draw_ids(13, *range(2, 22))
    asked = request("seeded", ids, 20, temperature=1.0, top_k=50, seed=-7)
    noise = [request(str(n), other, 25, temperature=0.9) for n, other in enumerate(others)]
    alone = run(generator(llama), [asked])["seeded", 0]
    assert run(generator(llama), [*noise, asked])["seeded", 0] == alone
    assert run(generator(llama, pages=64, rows=8, seqs=8), [asked, *noise])["seeded", 0] == alone
    other = run(generator(llama), [request("seeded", ids, 20, temperature=1.0, top_k=50, seed=8)])
    assert other["seeded", 0] != alone


def test_abort_returns_pages_at_every_stage(llama: Path) -> None:
    prompts = tiny.draw_ids(*[20] * 6)
    for steps in range(6):
        engine = generator(llama, rows=16, seqs=4)
        for n, ids in enumerate(prompts):
            engine.submit(request(str(n), ids, 50, n=2, temperature=1.0))
        for _ in range(steps):
            engine.step()
        engine.abort(wire.Abort("0", 0))
        for n in range(len(prompts)):
            engine.abort(wire.Abort(str(n)))
            engine.check_books()
        engine.abort(wire.Abort("never heard of"))
        assert not engine.has_work
        assert engine.scheduler.pool.num_used == 0


def test_aborting_one_answer_leaves_the_others(llama: Path) -> None:
    (ids,) = tiny.draw_ids(9)
    engine = generator(llama)
    engine.submit(request("a", ids, 10, n=3, temperature=1.0, seed=1))
    events = engine.step()
    engine.abort(wire.Abort("a", 0))
    events += finish(engine)
    lens = {index: len(tokens) for (_, index), tokens in answers(events).items()}
    assert lens == {0: 1, 1: 10, 2: 10}


def test_every_answer_ends_once_with_its_reason(llama: Path) -> None:
    (ids,) = tiny.draw_ids(7)
    long = run(generator(llama), [request("a", ids, 12)])["a", 0]
    engine = generator(llama)
    engine.submit(request("stop", ids, 12, stop_ids=(long[4],)))
    engine.submit(request("length", ids, 3))
    engine.submit(request("score", ids, 0, prompt_logprobs=0))
    done = {event.id: event for event in finish(engine) if isinstance(event, wire.Done)}
    assert {name: event.reason for name, event in done.items()} == {
        "stop": "stop",
        "length": "length",
        "score": "length",
    }
    assert done["stop"].stop_id == long[4]


@pytest.mark.parametrize("warm", [False, True])
def test_prompt_scores_are_whole_whatever_the_prefix_cache_and_the_chunks(llama: Path, warm: bool) -> None:
    ids = tiny.draw_ids(37)[0]
    engine = generator(llama, rows=10, seqs=4)
    if warm:
        run(engine, [request("warm", ids, 4)])
    engine.submit(request("a", ids, 2, prompt_logprobs=3))
    scores = [s for event in finish(engine) if isinstance(event, wire.PromptScores) for s in event.scores]
    logprobs = tiny.oracle_logits(tiny.oracle(llama), ids).log_softmax(-1)
    expected = [logprobs[at, token].item() for at, token in enumerate(ids[1:])]
    assert [score.logprob for score in scores] == pytest.approx(expected, abs=1e-4)
    assert all(len(score.top) == 3 and score.top[0][1] >= score.logprob for score in scores)


def test_what_can_never_run_is_refused_at_once(llama: Path) -> None:
    engine = generator(llama)
    for bad in ([], [1] * 250, [99999], [-1]):
        (event,) = engine.submit(request("bad", bad, 8))
        assert isinstance(event, wire.Failed)
    assert not engine.has_work


def test_ids_that_no_token_has_are_never_chosen(llama: Path) -> None:
    prompts = tiny.draw_ids(*[5] * 8)
    never = range(20, tiny.VOCAB)
    asked = [request(str(n), ids, 30, temperature=float(n % 2)) for n, ids in enumerate(prompts)]
    assert all(max(ids) < 20 for ids in run(generator(llama, never=list(never)), asked).values())


def test_a_dynamic_scaling_shares_no_keys_between_lengths(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    folder = tiny.checkpoint(tmp_path, "llama", max_position_embeddings=16, rope_parameters=rope)
    shared, one, other = tiny.draw_ids(24, 3, 9)
    asked = [request("a", shared + one, 8), request("b", shared + other, 8), request("c", shared[:10], 20)]
    warm = generator(folder, rows=32)
    got = [run(warm, asked), run(warm, asked)]
    alone = {(a.id, 0): greedy(folder, a.ids, a.params.max_tokens) for a in asked}
    assert got == [alone, alone]
