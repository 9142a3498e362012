"""Prompts that are read both ways (ChatGLM-6B): whole, by nobody else's pages, and the same after pre-emption."""

from pathlib import Path

import pytest
import torch

import published_models
from engine_world import generator, request, run
from trefoil import wire
from trefoil_models import checkpoint
from trefoil_models.attend import packed_rows

GMASK, SOP = 93, 94


def ask(seed: int, length: int) -> list[int]:
    ids = torch.randint(0, 90, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [*ids, GMASK, SOP]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return published_models.read("chatglm-6b").write(tmp_path)


def whole_passes(folder: Path, ids: list[int], count: int) -> list[int]:
    """Greedy tokens, each from a pass over all ids before it."""
    model = checkpoint.load(folder)
    said: list[int] = []
    with torch.no_grad():
        for _ in range(count):
            said.append(int(model.lm_head.logits(model(*packed_rows([[*ids, *said]])))[-1].argmax()))
    return said


def test_contexts_longer_than_a_steps_budget_are_read_at_once_beside_others(folder: Path) -> None:
    engine = generator(folder, rows=8, pages=64)
    prompts = {"long": ask(0, 60), "short": ask(1, 3), "middle": ask(2, 21)}
    answers = run(engine, [request(name, ids, 9) for name, ids in prompts.items()])
    for name, ids in prompts.items():
        assert answers[name, 0] == whole_passes(folder, ids, 9), name


def test_equal_beginnings_share_no_pages(folder: Path) -> None:
    engine, first = generator(folder), ask(0, 30)
    other = [*first[:24], *ask(1, 6)]
    answers = run(engine, [request("first", first, 6), request("again", first, 6), request("other", other, 6)])
    assert answers["first", 0] == answers["again", 0] == whole_passes(folder, first, 6)
    assert answers["other", 0] == whole_passes(folder, other, 6)
    assert engine.stats().prefix_hits == 0


def test_preempted_and_forked_answers_are_the_same(folder: Path) -> None:
    engine = generator(folder, pages=20, seqs=3)
    prompts = {f"{seed}": ask(seed, 18) for seed in range(3)}
    answers = run(engine, [request(name, ids, 20, n=2) for name, ids in prompts.items()])
    assert engine.stats().preemptions
    for name, ids in prompts.items():
        assert answers[name, 0] == answers[name, 1] == whole_passes(folder, ids, 20)


def test_beams_read_the_context_alike(folder: Path) -> None:
    roomy, tight = generator(folder, pages=256), generator(folder, pages=24, rows=8)
    asked = [request(f"{seed}", ask(seed, 13), 10, beams=3, n=3) for seed in range(3)]
    assert run(tight, asked) == run(roomy, asked)
    assert tight.stats().preemptions


def test_a_prompt_without_its_tokens_is_refused_by_name(folder: Path) -> None:
    (event,) = generator(folder).submit(request("bare", [1, 2, 3]))
    assert isinstance(event, wire.Failed)
    assert "[93, 94]" in event.message


def test_a_pack_is_its_sequences_and_gradients_reach_all(folder: Path) -> None:
    model = checkpoint.load(folder)
    sequences = [[*ask(0, 5), 7, 8, 9], ask(1, 1), [4, 5, 6], [*ask(2, 40), 1]]
    for parameter in model.parameters():
        parameter.requires_grad_()
    packed_TM = model(*packed_rows(sequences))
    alone_TM = torch.cat([model(*packed_rows([ids])) for ids in sequences])
    assert (packed_TM - alone_TM).abs().max() < 1e-5
    model.lm_head.logprobs(packed_TM, torch.zeros(len(packed_TM), dtype=torch.int64)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_earlier_rows_of_a_context_see_later_ones(folder: Path) -> None:
    model, ids = checkpoint.load(folder), ask(0, 9)
    with torch.no_grad():
        before, after = (model(*packed_rows([[*ids[:8], last, *ids[9:], 5]])) for last in (1, 2))
    assert (before[0] - after[0]).abs().max() > 1e-3
    answer = torch.no_grad()(model)(*packed_rows([[*ids, 5, 6]])), torch.no_grad()(model)(*packed_rows([[*ids, 5, 7]]))
    assert torch.equal(answer[0][:-1], answer[1][:-1])
