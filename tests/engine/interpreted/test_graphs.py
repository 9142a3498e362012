"""The engine as it runs on a GPU: Triton's kernels, tokens chosen on the device, decode steps padded to graph sizes.

What a CUDA graph would replay is called instead; everything before and after is what a GPU gets.
"""

from pathlib import Path

import pytest

import tiny
from engine_world import generator, request, run
from trefoil.engine.graphs import Run, graph_sizes


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
