"""Hidden spans are as long and as many as BART's paper has them, and the loss is that of transformers' BART."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers.models.bart.modeling_bart import shift_tokens_right

import tiny_pairs
from trefoil.training.data import Reader
from trefoil.training.examples import Window
from trefoil.training.objectives.text_infilling import TextInfilling, span_lens
from trefoil.training.plain_text import frame, retold_windows
from trefoil_models import checkpoint
from trefoil_models.tokenizer import Tokenizer

START, EOS, BOS, MASK = tiny_pairs.START, tiny_pairs.EOS, 1, 99
INFILLING = TextInfilling(MASK, START, EOS, (BOS,), (EOS,))


def last_before_masks(source: Sequence[int]) -> set[int]:
    """The tokens of the text after which the source has masks."""
    found, last = set(), source[0]
    for token in source:
        if token == MASK:
            found.add(last)
        else:
            last = token
    return found


@pytest.mark.parametrize("length", [2, 3, 10, 63, 400])
@pytest.mark.parametrize("density", [0.01, 0.3, 0.99])
def test_a_mask_stands_for_each_span_and_the_target_is_the_whole_text(length: int, density: float) -> None:
    torch.manual_seed(length)
    ids = tuple(range(100, 100 + length))
    for _ in range(20):
        infilling = TextInfilling(MASK, START, EOS, (BOS,), (EOS,), density, 3.0)
        example = infilling.infill(ids)
        assert example.ids == (START, BOS, *ids, EOS)
        assert example.is_label == (False, *[True] * (length + 2))
        kept = [token for token in example.source[1:-1] if token != MASK]
        assert (example.source[0], example.source[-1]) == (BOS, EOS)
        assert len(example.source) <= length + 2
        assert length - len(kept) == max(round(length * density), 1)
        framed = (BOS, *kept, EOS)
        gaps = {token for token, after in pairwise(framed) if (token, after) not in set(pairwise((BOS, *ids, EOS)))}
        assert gaps <= last_before_masks(example.source)


def test_spans_are_as_long_as_poisson_says() -> None:
    torch.manual_seed(0)
    lens = span_lens(30_000, 3.0)
    assert sum(lens) == 30_000
    for length, seen in Counter(lens[:-1]).items():
        expected = len(lens) * math.exp(-3.0) * 3.0**length / math.factorial(length)
        assert abs(seen - expected) < 5 * math.sqrt(expected) + 1, length


def test_masks_fall_everywhere_alike() -> None:
    torch.manual_seed(0)
    ids = tuple(range(100, 120))
    gone: Counter[int] = Counter()
    for _ in range(2000):
        gone.update(set(ids) - set(INFILLING.infill(ids).source))
    assert sum(gone.values()) == 2000 * 6
    inner = [gone[token] for token in ids[3:-3]]
    assert max(inner) - min(inner) < 0.25 * (sum(inner) / len(inner))
    assert min(gone.values()) > 0.3 * 600


def test_both_sides_of_a_window_fit_the_model(tmp_path: Path) -> None:
    folder = tiny_pairs.add_mask(tiny_pairs.checkpoint(tmp_path / "bart", "bart"))
    reader = Reader(Tokenizer.load(folder), (EOS,), longest=16, start_id=START)
    before, after = frame(reader)
    assert (before, after) == ([BOS], [EOS])
    for window in retold_windows(["the cat sat on the mat " * 9], reader):
        example = TextInfilling(MASK, START, EOS, tuple(before), tuple(after)).infill(window.ids)
        assert max(len(example.source), len(example.ids) - 1) <= 16


def test_loss_is_that_of_transformers_bart(tmp_path: Path) -> None:
    folder = tiny_pairs.checkpoint(tmp_path / "bart", "bart", std=0.1)
    ids = (20, 30, 40, 50, 60, 70, 80)
    torch.manual_seed(5)
    source = torch.tensor([INFILLING.infill(ids).source])
    labels = torch.tensor([[BOS, *ids, EOS]])
    assert shift_tokens_right(labels, 0, START).tolist() == [[START, BOS, *ids]]
    with torch.no_grad():
        theirs = tiny_pairs.oracle(folder)(input_ids=source, labels=labels).loss
    torch.manual_seed(5)
    ours = INFILLING(checkpoint.load(folder), [Window(ids)])
    torch.testing.assert_close(ours.total / ours.weight, theirs)
