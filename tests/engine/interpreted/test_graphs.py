"""The engine as it runs on a GPU: Triton's kernels, tokens chosen on the device, decode steps padded to graph sizes.

What a CUDA graph would replay is called instead; everything before and after is what a GPU gets.
"""

from pathlib import Path

import pytest

import tiny
from engine_world import answers, finish, generator, request, run
from trefoil.engine.graphs import Run, graph_sizes
from trefoil.wire import Abort, Generate
from trefoil_models.mixture import Mixture
from trefoil_models.packing import lay_together


class Called:
    """A capture that calls again what it was given, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, run: Run) -> Run:
        def replayed() -> object:
            self.calls += 1
            return run()

        return replayed


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("llama"), "llama")


def greedy(folder: Path, ids: list[int], count: int) -> list[int]:
    """transformers' logits, one token after the other."""
    model, ids = tiny.oracle(folder), list(ids)
    for _ in range(count):
        ids.append(int(tiny.oracle_logits(model, ids)[-1].argmax()))
    return ids[-count:]


def test_padded_decode_steps_give_the_tokens_of_transformers(llama: Path) -> None:
    called, prompts = Called(), tiny.draw_ids(1, 5, 6)
    asked = [request(str(n), ids, 2 + n) for n, ids in enumerate(prompts)]
    got = run(generator(llama, seqs=4, capture=called), asked)
    assert [got[str(n), 0] for n in range(3)] == [greedy(llama, ids, 2 + n) for n, ids in enumerate(prompts)]
    assert called.calls == 3


@pytest.mark.parametrize("family", ["deepseek_v3", "mixtral"])
def test_experts_are_met_in_one_product_that_asks_no_host(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, called = tiny.checkpoint(tmp_path, family), Called()
    prompts = tiny.draw_ids(1, 12)  # 36 pairs or more in the step of both prompts, so in tiles
    engine = generator(folder, seqs=4, capture=called, lay_out=lay_together)
    monkeypatch.delattr(Mixture, "_by_expert")
    got = run(engine, [request(str(n), ids, 2 + n) for n, ids in enumerate(prompts)])
    assert [got[str(n), 0] for n in range(2)] == [greedy(folder, ids, 2 + n) for n, ids in enumerate(prompts)]
    assert called.calls == 2


def test_a_seed_draws_the_same_tokens_padded_or_not_alone_or_in_company(llama: Path) -> None:
    prompts = tiny.draw_ids(5, 3)
    asked = [request(str(n), ids, 3, temperature=1.0, top_p=0.9, top_k=20, seed=n) for n, ids in enumerate(prompts)]
    together = run(generator(llama, seqs=3, capture=Called()), asked)
    alone = run(generator(llama, seqs=3), asked[:1])
    assert together["0", 0] == alone["0", 0]


def test_graph_sizes_end_at_the_most_sequences_and_waste_little() -> None:
    for most in (1, 3, 8, 100, 256, 512):
        sizes = graph_sizes(most)
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == most
        for num in range(1, most + 1):
            padded = next(size for size in sizes if size >= num)
            assert padded - num <= max(num // 2, 7)


def both_ways(folder: Path, asked: list[Generate], **settings: int) -> list[dict[tuple[str, int], list[int]]]:
    """The same requests with decode steps started ahead, and with every step waited for."""
    return [run(generator(folder, capture=capture, **settings), asked) for capture in (Called(), None)]


def test_a_token_that_ends_a_sequence_is_the_last_whatever_was_started_behind_it(llama: Path) -> None:
    prompts = tiny.draw_ids(4, 9, 6)
    plain = run(generator(llama), [request(str(n), ids, 9) for n, ids in enumerate(prompts)])
    stops = [plain[str(n), 0][2 + n] for n in range(3)]
    asked = [request(str(n), ids, 9, stop_ids=[stops[n]]) for n, ids in enumerate(prompts)]
    ahead, waited = both_ways(llama, asked)
    assert ahead == waited
    assert all(ahead[str(n), 0][-1] == stops[n] for n in range(3))


def test_steps_ahead_give_the_same_tokens_when_seats_or_pages_run_short(llama: Path) -> None:
    asked = [request(str(n), ids, 3 + n, seed=n, temperature=n / 3) for n, ids in enumerate(tiny.draw_ids(3, 7, 2, 9))]
    for settings in ({"seqs": 2}, {"pages": 9}):
        ahead, waited = both_ways(llama, asked, **settings)
        assert {key: len(ids) for key, ids in ahead.items()} == {(str(n), 0): 3 + n for n in range(4)}
        assert ahead["0", 0] == waited["0", 0]


def test_pages_filled_by_steps_ahead_are_found_by_their_content(llama: Path) -> None:
    hits = []
    for capture in (Called(), None):
        engine = generator(llama, capture=capture)
        (prompt,) = tiny.draw_ids(6)
        first = run(engine, [request("first", prompt, 9)])["first", 0]
        second = run(engine, [request("second", [*prompt, *first], 2)])["second", 0]
        hits.append((engine.stats().prefix_hits, first, second))
    assert hits[0] == hits[1]
    assert hits[0][0] == 12


def test_who_is_aborted_while_a_step_is_under_way_hears_nothing_more(llama: Path) -> None:
    engine = generator(llama, capture=Called())
    for n, ids in enumerate(tiny.draw_ids(4, 5)):
        assert engine.submit(request(str(n), ids, 12)) == []
    for _ in range(4):
        engine.step()
    engine.abort(Abort("0"))
    events = finish(engine)
    assert {event.id for event in events} == {"1"}
    assert len(answers(events)["1", 0]) == 12 - 4
    for n in range(2):
        assert engine.submit(request(str(n), [1, 2], 8)) == []
    for _ in range(3):
        engine.step()
    engine.abort(Abort("0"))
    engine.abort(Abort("1"))
    engine.check_books()
    assert run(engine, [request("2", tiny.draw_ids(5)[0], 3)])["2", 0] == greedy(llama, tiny.draw_ids(5)[0], 3)
