"""Encoder-decoders in the paged engine: transformers' ids whatever shares a step, an input encoded once and shared."""

import random
from functools import cache
from pathlib import Path

import pytest
import torch

import tiny
import tiny_pairs
from engine_world import answers, finish, generator, request, run
from trefoil import wire
from trefoil.engine.generator import Generator

SOURCES = tiny.draw_ids(33, 1, 50, 7, 90, 12)
MANY_TOKENS = 40
"""With distances up to 16 in buckets, most of an answer lies beyond the largest one."""


@pytest.fixture(scope="module", params=tiny_pairs.FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs.checkpoint(tmp_path_factory.mktemp("pairs"), request.param)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs.checkpoint(tmp_path_factory.mktemp("t5"), "t5")


def ask(name: str, source: list[int], max_tokens: int = MANY_TOKENS, **params: object) -> wire.Generate:
    return request(name, [tiny_pairs.START], max_tokens, source=source, stop_ids=(tiny_pairs.EOS,), **params)


def oracle_ids(folder: Path, source: list[int], max_tokens: int = MANY_TOKENS) -> list[int]:
    out = tiny_pairs.oracle(folder).generate(
        torch.tensor([source]), max_new_tokens=max_tokens, do_sample=False, num_beams=1
    )
    return out[0, 1:].tolist()


@cache
def wanted(folder: Path) -> dict[tuple[str, int], list[int]]:
    return {(str(n), 0): oracle_ids(folder, source) for n, source in enumerate(SOURCES)}


def requests() -> list[wire.Generate]:
    return [ask(str(n), source) for n, source in enumerate(SOURCES)]


def test_greedy_ids_are_those_of_transformers(folder: Path) -> None:
    assert run(generator(folder), requests()) == wanted(folder)


@pytest.mark.parametrize(
    "world",
    [
        {"rows": 8, "seqs": 4},
        {"prefix_caching": False},
        {"page_size": 16},
        {"pages": 80, "seqs": 6},
        {"pages": 80, "seqs": 6, "prefix_caching": False},
    ],
    ids=str,
)
def test_ids_do_not_depend_on_budgets_pages_or_pre_emption(t5: Path, world: dict[str, int]) -> None:
    engine = generator(t5, **world)
    assert run(engine, requests()) == wanted(t5)
    assert bool(engine.scheduler.totals.preemptions) == ("pages" in world)


def test_requests_at_every_stage_share_steps(t5: Path) -> None:
    engine, events, dice = generator(t5, rows=16), [], random.Random(0)
    for one in requests():
        assert engine.submit(one) == []
        for _ in range(dice.randint(1, 9)):
            events += engine.step() if engine.has_work else []
            engine.check_books()
    assert answers(events + finish(engine)) == wanted(t5)


def test_a_long_decoder_prompt_is_chunked(t5: Path) -> None:
    """Ids of an answer given as prompt go on as the answer did."""
    whole = oracle_ids(t5, SOURCES[0])
    cut = request("a", [tiny_pairs.START, *whole[:25]], len(whole) - 25, source=SOURCES[0], stop_ids=(tiny_pairs.EOS,))
    assert run(generator(t5, rows=7, seqs=4), [cut]) == {("a", 0): whole[25:]}


def test_equal_inputs_are_encoded_once(t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = generator(t5)
    encoded = count_encodes(engine, monkeypatch)
    for name in "abc":
        engine.submit(ask(name, SOURCES[0]))
    engine.submit(ask("d", SOURCES[1]))
    first = answers(finish(engine))
    assert encoded == [len(SOURCES[0]), len(SOURCES[1])]
    assert run(engine, [ask("later", SOURCES[0])])["later", 0] == first["a", 0] == first["b", 0] == first["c", 0]
    assert len(encoded) == 2


def test_an_input_is_encoded_anew_once_its_pages_were_taken(t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = generator(t5, pages=40, seqs=2)
    encoded = count_encodes(engine, monkeypatch)
    asked = [ask(str(n), SOURCES[n], 8) for n in (0, 4, 2)] + [ask("again", SOURCES[0], 8)]
    found = [run(engine, [one]) for one in asked]
    assert found[0]["0", 0] == found[-1]["again", 0]
    assert len(encoded) == 4


def test_equal_decoder_prompts_of_unequal_inputs_share_no_page(t5: Path) -> None:
    prompt = [tiny_pairs.START, *tiny.draw_ids(20, seed=3)[0]]
    engine = generator(t5)
    one, other = (request(n, prompt, 6, source=s) for n, s in (("a", SOURCES[0]), ("b", SOURCES[2])))
    together = run(engine, [one]) | run(engine, [other])
    assert together == run(generator(t5), [one]) | run(generator(t5), [other])


def test_several_answers_share_the_input(t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = generator(t5)
    encoded = count_encodes(engine, monkeypatch)
    found = run(engine, [ask("a", SOURCES[0], 12, n=4, temperature=1.0, seed=7)])
    assert len(found) == 4
    assert len({tuple(ids) for ids in found.values()}) > 1
    assert encoded == [len(SOURCES[0])]


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_abort_returns_pages_of_both_kinds(t5: Path, steps: int) -> None:
    engine = generator(t5)
    for one in requests():
        engine.submit(one)
    for _ in range(steps):
        engine.step()
    for one in requests():
        engine.abort(wire.Abort(one.id))
        engine.check_books()
    assert engine.scheduler.pool.num_used == 0


def test_scores_of_a_target_are_those_of_transformers(folder: Path) -> None:
    source, target = SOURCES[0], tiny.draw_ids(9, seed=2)[0]
    asked = request("a", [tiny_pairs.START, *target], 0, source=source, prompt_logprobs=0)
    engine = generator(folder, rows=4, seqs=4)
    engine.submit(asked)
    found = [s.logprob for e in finish(engine) if isinstance(e, wire.PromptScores) for s in e.scores]
    _, logits = tiny_pairs.oracle_answers(tiny_pairs.oracle(folder), [source], [[tiny_pairs.START, *target]])
    expected = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(target)[:, None])[:, 0]
    assert (torch.tensor(found) - expected).abs().max() < 1e-4


def test_what_cannot_run_is_refused(t5: Path, tmp_path: Path) -> None:
    engine = generator(t5, pages=64)
    for bad in (ask("a", []), ask("a", [1] * 257), ask("a", [tiny.VOCAB]), ask("a", [1], 256)):
        (answer,) = engine.submit(bad)
        assert isinstance(answer, wire.Failed)
    decoder = generator(tiny.checkpoint(tmp_path, "llama"))
    assert isinstance(decoder.submit(ask("a", [1]))[0], wire.Failed)


def count_encodes(engine: Generator, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the inputs that the encoder reads from now on."""
    lens: list[int] = []
    encode = engine.runner._model.encode

    def counted(rows: object, here: object, there: object) -> object:
        lens.extend(here.packing.lens)
        return encode(rows, here, there)

    monkeypatch.setattr(engine.runner._model, "encode", counted)
    return lens
