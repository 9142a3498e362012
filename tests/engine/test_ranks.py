"""Ranks of one model, each an engine that hears the same: they answer as one process does, whatever is asked."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch
from llguidance import LLMatcher

import tiny
import tiny_pairs
from engine_world import answers, finish, generator, request, run
from threaded_ranks import Threads, on_ranks
from trefoil import wire
from trefoil.engine.board import PLACE_BYTES, Board, SharedMemory
from trefoil.engine.generator import Generator
from trefoil.engine.lines import Following, Leading
from trefoil.engine.ranks import ALONE, Ranks, Together
from trefoil_models import checkpoint
from trefoil_models.adapter_files import save_adapter
from trefoil_models.config_keys import CheckpointError
from trefoil_models.lora import LoraShape, attach
from trefoil_models.slices import Share

SHAPE = LoraShape(r=3, alpha=6.0)
GRAMMAR = LLMatcher.grammar_from_regex("(one|two|three)( (four|five)){2}")


def adapter(base: Path, folder: Path) -> Path:
    """Of every linear layer, experts included."""
    model = checkpoint.load(base)
    for n, layer in enumerate(attach(model, SHAPE, seed=1).values()):
        layer.lora_up.data = layer.lora_up.data + 0.2 * (n % 3 - 1)
    save_adapter(model, folder, SHAPE, base="base")
    return folder


def asked() -> list[wire.Generate]:
    """Of every kind: greedy and drawn, several answers, a search, a grammar, scores of the prompt, an adapter."""
    prompts = tiny.draw_ids(5, 21, 9, 13, 7, 30, vocab=300)
    kinds = [
        {},
        {"temperature": 0.9, "seed": 7, "top_p": 0.9, "n": 2, "repetition_penalty": 1.2},
        {"beams": 3, "n": 2},
        {"grammar": GRAMMAR},
        {"prompt_logprobs": 2},
    ]
    plain = [request(f"{n}", prompt, 10, **kind) for n, (prompt, kind) in enumerate(zip(prompts, kinds, strict=False))]
    params = wire.SamplingParams(max_tokens=10, temperature=0.0)
    return [*plain, wire.Generate("adapted", prompts[-1], params, 0, "a")]


def told(folder: Path, lora: Path, ranks: Ranks) -> tuple[dict[tuple[str, int], list[int]], list[float], Generator]:
    """Every answer's ids, and the prompt's scores, of one engine."""
    engine = generator(folder, ranks=ranks, eos_ids=[0], rows=16)
    engine.load_adapter(wire.LoadAdapter("a", str(lora)))
    for one in asked():
        assert engine.submit(one) == []
    events = finish(engine)
    scores = [s.logprob for event in events if isinstance(event, wire.PromptScores) for s in event.scores]
    return answers(events), scores, engine


def test_what_one_rank_refuses_the_first_one_raises(tmp_path: Path) -> None:
    ours, theirs = Pipe()
    board = Board(2)
    Together(Share(1, 2), [theirs], board, tmp_path / "meeting").refuse("tensor x is damaged")
    with pytest.raises(CheckpointError, match="tensor x is damaged"):
        Together(Share(0, 2), [ours], board, tmp_path / "meeting").meet(torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_board_gives_every_rank_the_same_sums_and_rows(dtype: torch.dtype) -> None:
    width = 2 * PLACE_BYTES // 4 + 3  # a row has no room in one place
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, width, generator=generator).to(dtype) for _ in range(3)]
    board = Board(3)

    def asked(share: Share) -> list[torch.Tensor]:
        ranks = SharedMemory(copy(board), share)
        mine = parts[share.rank]
        narrow = mine[:, :70_000]
        return [ranks.sum(mine.clone()), ranks.beside(narrow), ranks.beside(mine[:0]), ranks.sum(narrow.contiguous())]

    with ThreadPoolExecutor(3) as threads:
        first, *others = threads.map(asked, [Share(rank, 3) for rank in range(3)])
    wanted = parts[0] + parts[1] + parts[2]
    assert torch.equal(first[0], wanted)
    assert torch.equal(first[1], torch.cat([part[:, :70_000] for part in parts], 1))
    assert first[2].shape == (0, 3 * width)
    assert torch.equal(first[3], wanted[:, :70_000])
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


COLLECTIVES = """
import os, sys, torch
from pathlib import Path
from trefoil.engine.ranks import Collectives
from trefoil_models.slices import Share

first = os.fork() > 0
own = Collectives(Share(int(not first), 2), torch.device("cpu"), Path(sys.argv[1]))
mine = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * (1 if first else 10)
assert own.sum(mine.clone()).tolist() == [[11, 22], [33, 44]]
assert own.beside(mine).tolist() == [[1, 2, 10, 20], [3, 4, 30, 40]]
assert own.beside(mine[:0]).shape == (0, 4)
assert own.least(5 if first else 3) == 3
if not first:
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_collectives_of_two_processes_add_and_gather(tmp_path: Path) -> None:
    """By gloo; what differs with NCCL is the name."""
    command = [sys.executable, "-c", COLLECTIVES, str(tmp_path / "meeting")]
    done = subprocess.run(command, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"}, timeout=60, check=False)
    assert done.returncode == 0


class Heard:
    """A line of these commands."""

    def __init__(self, *commands: wire.Command) -> None:
        self._commands = list(commands)

    def commands(self, wait_ms: int) -> list[wire.Command]:
        return self._commands

    def say(self, message: wire.Message) -> None:
        pass


def test_ranks_hear_the_same_and_one_that_counts_otherwise_ends() -> None:
    ours, theirs = Pipe()
    leading, following = Leading(Heard(request("a", [5], temperature=1.0)), [ours]), Following(theirs)
    (told,), (heard,) = leading.commands(0), following.commands(0)
    assert told == heard
    assert isinstance(told, wire.Generate)
    assert told.params.seed is not None
    leading.say(wire.Batch([], wire.Stats(running=1)))
    leading.commands(0)
    with pytest.raises(AssertionError, match="running=1"):
        following.commands(0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2_moe", "deepseek_v2"])
def test_two_ranks_answer_as_one_process(family: str, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "m", family)
    lora = adapter(folder, tmp_path / "lora")
    wanted, wanted_scores, _ = told(folder, lora, ALONE)

    def one(ranks: Threads) -> tuple[dict[tuple[str, int], list[int]], list[float], wire.Stats]:
        ids, scores, engine = told(folder, lora, ranks)
        return ids, scores, engine.stats()

    (ids, scores, stats), (others, _, other_stats) = on_ranks(2, one)
    assert ids == others == wanted
    assert scores == pytest.approx(wanted_scores, abs=1e-4)
    assert stats == other_stats


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_two_ranks_of_an_encoder_decoder_answer_as_one_process(family: str, tmp_path: Path) -> None:
    folder = tiny_pairs.checkpoint(tmp_path, family)
    sources = tiny.draw_ids(9, 17, 30, vocab=300)
    kinds = [{}, {"temperature": 0.8, "seed": 3}, {"beams": 3, "n": 2}]
    requests = [
        request(f"{n}", [0], 8, source=source, **kind)
        for n, (source, kind) in enumerate(zip(sources, kinds, strict=True))
    ]
    wanted = run(generator(folder), requests)
    ids, others = on_ranks(2, lambda ranks: run(generator(folder, ranks=ranks), requests))
    assert ids == others == wanted
