"""Beam search gives transformers' ids and scores, for decoders and encoder-decoders, and returns every page."""

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import tiny_pairs
from engine_world import finish, generator, request
from trefoil import wire
from trefoil.engine.generator import Generator
from trefoil_kernels.cpu.library import native

PROMPTS = tiny.draw_ids(9, 1, 23, 14)
TOKENS = 14
STOPS = (0, 5, 17, 40, 93, 121, 200)
"""Many, so that beams end at every length; more than one, so that more candidates are looked at."""
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"beams": 4},
    "two": {"beams": 2, "n": 2},
    "returned": {"beams": 4, "n": 3},
    "long": {"beams": 3, "n": 3, "length_penalty": 2.0},
    "short": {"beams": 3, "n": 3, "length_penalty": -1.0},
    "no penalty": {"beams": 4, "n": 4, "length_penalty": 0.0, "early_stopping": None},
    "early": {"beams": 4, "n": 4, "early_stopping": True},
    "never early": {"beams": 4, "n": 4, "early_stopping": None},
    "no repeats": {"beams": 4, "n": 2, "no_repeat_ngram_size": 2},
    "penalty": {"beams": 4, "n": 2, "repetition_penalty": 1.3, "min_tokens": 6},
    "forced": {"beams": 4, "n": 2, "forced_first_id": 7, "forced_last_id": 0},
}
THEIR_NAMES = {
    "beams": "num_beams",
    "n": "num_return_sequences",
    "min_tokens": "min_new_tokens",
    "forced_first_id": "forced_bos_token_id",
    "forced_last_id": "forced_eos_token_id",
}
Answers = dict[tuple[str, int], tuple[list[int], float]]


@pytest.fixture(scope="module", params=["t5", "bart", "llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("beams"), request.param)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("t5"), "t5")


def checkpoint(folder: Path, family: str) -> Path:
    make = tiny_pairs if family in tiny_pairs.FAMILIES else tiny
    return make.checkpoint(folder, family, seed=2)


def ask(folder: Path, name: str, ids: list[int], **params: Any) -> wire.Generate:
    params = {"stop_ids": STOPS, **params}
    tokens = params.pop("max_tokens", TOKENS)
    if is_pair(folder):
        return request(name, [tiny_pairs.START], tokens, source=ids, **params)
    return request(name, ids, tokens, **params)


def is_pair(folder: Path) -> bool:
    return "encoder" in (folder / "config.json").read_text()


def searched(engine: Generator, requests: list[wire.Generate]) -> Answers:
    """Ids and score of every answer; each comes whole, in one piece."""
    for one in requests:
        assert engine.submit(one) == []
    return gathered(finish(engine))


def gathered(events: list[wire.Event]) -> Answers:
    ids = {(e.id, e.index): e.ids for e in events if isinstance(e, wire.Tokens)}
    scores = {(e.id, e.index): e.score for e in events if isinstance(e, wire.Done)}
    assert ids.keys() == scores.keys()
    return {key: (ids[key], scores[key]) for key in ids}


@cache
def wanted(folder: Path, setting: str) -> Answers:
    """What transformers' generate answers to every prompt."""
    model = (tiny_pairs if is_pair(folder) else tiny).oracle(folder)
    theirs = {THEIR_NAMES.get(name, name): value for name, value in SETTINGS[setting].items()}
    if "early_stopping" in theirs and theirs["early_stopping"] is None:
        theirs["early_stopping"] = "never"
    found: Answers = {}
    for number, prompt in enumerate(PROMPTS):
        out = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=list(STOPS),
            pad_token_id=tiny.VOCAB - 1,
            output_scores=True,
            return_dict_in_generate=True,
            **theirs,
        )
        skipped = 1 if is_pair(folder) else len(prompt)
        for index, (ids, score) in enumerate(zip(out.sequences, out.sequences_scores, strict=True)):
            found[str(number), index] = cut(ids[skipped:].tolist()), score.item()
    return found


def cut(ids: list[int]) -> list[int]:
    ends = [at for at, token in enumerate(ids) if token in STOPS]
    return ids[: ends[0] + 1] if ends else ids


def assert_same(found: Answers, expected: Answers) -> None:
    assert {key: ids for key, (ids, _) in found.items()} == {key: ids for key, (ids, _) in expected.items()}
    for key, (_, score) in found.items():
        assert score == pytest.approx(expected[key][1], rel=1e-5, abs=1e-4)


def requests(folder: Path, setting: str) -> list[wire.Generate]:
    return [ask(folder, str(n), prompt, **SETTINGS[setting]) for n, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s != "forced"])
def test_ids_and_scores_are_those_of_transformers(folder: Path, setting: str) -> None:
    assert_same(searched(generator(folder), requests(folder, setting)), wanted(folder, setting))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_beams_played_from_tapes_are_those_of_steps_called_one_by_one(folder: Path, dtype: torch.dtype) -> None:
    if native() is None:
        pytest.skip("no native library on this machine")
    engine = generator(folder, dtype=dtype, recorder=native())
    found = searched(engine, requests(folder, "returned"))
    assert found == searched(generator(folder, dtype=dtype), requests(folder, "returned"))
    engine.check_books()
    if dtype == torch.float32:
        assert_same(found, wanted(folder, "returned"))


def test_forced_ends_are_those_of_transformers(t5: Path) -> None:
    assert_same(searched(generator(t5), requests(t5, "forced")), wanted(t5, "forced"))


@pytest.mark.parametrize(
    "world",
    [
        {"rows": 8, "seqs": 8},
        {"prefix_caching": False},
        {"page_size": 1},
        {"pages": 46, "page_size": 2, "seqs": 16},
        {"pages": 46, "page_size": 2, "seqs": 16, "prefix_caching": False},
        {"seqs": 9, "rows": 9},
    ],
    ids=str,
)
def test_ids_do_not_depend_on_budgets_pages_or_pre_emption(folder: Path, world: dict[str, Any]) -> None:
    engine = generator(folder, **world)
    assert_same(searched(engine, requests(folder, "returned")), wanted(folder, "returned"))
    assert bool(engine.scheduler.totals.preemptions) == ("pages" in world)


def test_searches_and_samples_share_steps(folder: Path) -> None:
    alone = searched(generator(folder), [ask(folder, "greedy", PROMPTS[2], max_tokens=40, stop_ids=())])
    engine = generator(folder)
    together = requests(folder, "returned")
    together.insert(2, ask(folder, "greedy", PROMPTS[2], max_tokens=40, stop_ids=()))
    for one in together:
        engine.submit(one)
    events = finish(engine)
    greedy = [i for e in events if isinstance(e, wire.Tokens) and e.id == "greedy" for i in e.ids]
    assert len(greedy) == 40
    assert alone
    assert_same(gathered([e for e in events if e.id != "greedy"]), wanted(folder, "returned"))


@pytest.mark.parametrize("seed", range(6))
def test_books_balance_after_aborts_in_mid_search(folder: Path, seed: int) -> None:
    dice, engine = random.Random(seed), generator(folder, pages=96, page_size=2, seqs=16)
    open_: list[str] = []
    for turn in range(60):
        if dice.random() < 0.4:
            open_.append(str(turn))
            beams = dice.choice([1, 2, 4])
            engine.submit(ask(folder, str(turn), dice.choice(PROMPTS), beams=beams, n=dice.randint(1, beams)))
        if open_ and dice.random() < 0.25:
            engine.abort(wire.Abort(open_.pop(dice.randrange(len(open_)))))
        engine.check_books()
        if engine.has_work:
            engine.step()
            engine.check_books()
    for name in open_:
        engine.abort(wire.Abort(name))
    assert engine.scheduler.pool.num_used == 0
    assert not engine.has_work


def test_every_answer_ends_once(t5: Path) -> None:
    engine = generator(t5)
    engine.submit(ask(t5, "a", PROMPTS[0], beams=4, n=3))
    done = [event for event in finish(engine) if isinstance(event, wire.Done)]
    assert [event.index for event in done] == [0, 1, 2]
    assert [event.score for event in done] == sorted((event.score for event in done), reverse=True)


def test_scores_of_the_tokens_add_up_to_that_of_the_answer(t5: Path) -> None:
    engine = generator(t5)
    engine.submit(ask(t5, "a", PROMPTS[0], beams=3, logprobs=2))
    events = finish(engine)
    (tokens,) = [event for event in events if isinstance(event, wire.Tokens)]
    (done,) = [event for event in events if isinstance(event, wire.Done)]
    assert sum(score.logprob for score in tokens.scores) / len(tokens.ids) == pytest.approx(done.score, abs=1e-5)
    assert all(len(score.top) == 2 for score in tokens.scores)


def test_a_search_that_can_never_fit_is_refused(t5: Path) -> None:
    engine = generator(t5, pages=40, seqs=4)
    for bad in ({"beams": 5}, {"beams": 2, "n": 3}, {"beams": 4, "max_tokens": 100}):
        (answer,) = engine.submit(ask(t5, "a", PROMPTS[0], **bad))
        assert isinstance(answer, wire.Failed)
    assert engine.submit(ask(t5, "a", PROMPTS[0], beams=4)) == []
