"""Corrupted texts can be put together again, lose as much as they should, and can be learnt from."""

from pathlib import Path
from random import Random

import pytest

import tiny_pairs
from trefoil.training.examples import Example
from trefoil.training.loop import Recipe, Watch, train
from trefoil.training.objectives.causal_lm import causal_lm
from trefoil.training.objectives.span_corruption import corrupted
from trefoil_models import checkpoint

SENTINELS = tuple(range(99, 79, -1))
START, EOS = 0, 1


def corrupt(ids: list[int], seed: int, **how: float) -> Example:
    return corrupted(ids, Random(seed), sentinels=SENTINELS, start_id=START, eos_id=EOS, **how)


def restored(example: Example) -> list[int]:
    """The text again: each sentinel of the source gives way to what follows it in the target."""
    gone: dict[int, list[int]] = {}
    for token in example.ids[1:-1]:
        if token in SENTINELS:
            gone[token] = last = []
        else:
            last.append(token)
    return [own for token in example.source[:-1] for own in gone.get(token, [token])]


@pytest.mark.parametrize("length", [2, 3, 10, 63, 500])
@pytest.mark.parametrize("seed", range(3))
def test_source_and_target_make_the_text_again(length: int, seed: int) -> None:
    ids = [Random(seed).randrange(10, 70) for _ in range(length)]
    example = corrupt(ids, seed)
    assert restored(example) == ids
    assert example.ids[0] == START
    assert example.ids[-1] == example.source[-1] == EOS
    assert example.is_label == (False, *[True] * (len(example.ids) - 1))


def test_sentinels_come_in_order_and_the_last_ends_the_target() -> None:
    example = corrupt(list(range(10, 70)), 5)
    marks = [token for token in example.source if token in SENTINELS]
    assert marks == list(SENTINELS[: len(marks)])
    assert [token for token in example.ids if token in SENTINELS] == list(SENTINELS[: len(marks) + 1])
    assert example.ids[-2] == SENTINELS[len(marks)]


@pytest.mark.parametrize(("density", "span_len"), [(0.15, 3.0), (0.5, 2.0), (0.3, 10.0)])
def test_as_much_is_gone_as_was_asked_for(density: float, span_len: float) -> None:
    example = corrupt([10] * 400, 1, density=density, span_len=span_len)
    gaps = sum(token in SENTINELS for token in example.source)
    gone = sum(token == 10 for token in example.ids)
    assert gone == round(400 * density)
    assert gaps == min(round(gone / span_len), len(SENTINELS) - 1)


def test_the_loss_falls(tmp_path: Path) -> None:
    model = checkpoint.load(tiny_pairs.checkpoint(tmp_path / "t5", "t5", std=0.1))
    examples = [corrupt([Random(n).randrange(10, 70) for _ in range(12)], n) for n in range(8)]
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    losses: list[float] = []
    watch = Watch(report=lambda progress: losses.append(progress.loss))
    train(model, causal_lm, examples, Recipe(learning_rate=1e-2, epochs=60, report_every=1), watch=watch)
    assert losses[-1] < 0.5 * losses[0]
