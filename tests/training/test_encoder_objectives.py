"""Objectives of encoders: what is masked and how, and that every head's loss falls on a few examples."""

from pathlib import Path

import pytest
import torch

import tiny_encoders
from trefoil.training.examples import IGNORED, Reading
from trefoil.training.loop import Objective, Recipe, Watch, mean_loss, train
from trefoil.training.objectives.classification import classification
from trefoil.training.objectives.masked_lm import MaskedLM
from trefoil.training.objectives.question_answering import question_answering
from trefoil.training.objectives.token_classification import token_classification
from trefoil_models import checkpoint

MASK, VOCAB = 4, tiny_encoders.VOCAB
OBJECTIVE = MaskedLM(MASK, VOCAB, range(5))


def readings(*labels: tuple[int, ...]) -> list[Reading]:
    return [Reading((2, *range(10 + n, 16 + n), 3), (0,) * 8, own) for n, own in enumerate(labels)]


def test_of_the_chosen_eight_in_ten_are_masked_one_replaced_one_kept() -> None:
    torch.manual_seed(0)
    ids_T = torch.randint(5, VOCAB, (40_000,))
    seen_T, is_chosen_T = OBJECTIVE.mask(ids_T)
    chosen, seen = ids_T[is_chosen_T], seen_T[is_chosen_T]
    assert len(chosen) / len(ids_T) == pytest.approx(0.15, abs=0.01)
    assert (seen == MASK).float().mean() == pytest.approx(0.8, abs=0.02)
    assert (seen == chosen).float().mean() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(seen_T[~is_chosen_T], ids_T[~is_chosen_T])


def test_special_tokens_are_never_chosen_and_something_always_is() -> None:
    for seed in range(200):
        torch.manual_seed(seed)
        _, is_chosen_T = OBJECTIVE.mask(torch.tensor([2, 9, 3]))
        assert is_chosen_T.tolist() == [False, True, False]


def test_masks_are_drawn_anew_and_from_torchs_state() -> None:
    ids_T = torch.arange(5, 205)
    torch.manual_seed(1)
    first, second = OBJECTIVE.mask(ids_T)[1], OBJECTIVE.mask(ids_T)[1]
    torch.manual_seed(1)
    assert not torch.equal(first, second)
    assert torch.equal(first, OBJECTIVE.mask(ids_T)[1])


def test_named_rows_are_the_chosen_ones() -> None:
    is_named_T = torch.tensor([False, True, False, True])
    assert OBJECTIVE.mask(torch.tensor([7, 8, 9, 10]), is_named_T)[1].tolist() == is_named_T.tolist()


@pytest.mark.parametrize(
    ("head", "objective", "examples"),
    [
        ("ForMaskedLM", OBJECTIVE, readings(*[(IGNORED,) * 3 + (1,) + (IGNORED,) * 4] * 8)),
        ("ForSequenceClassification", classification, readings(*[(n % 2,) for n in range(8)])),
        (
            "ForTokenClassification",
            token_classification,
            readings(*[(IGNORED, *[n % 2] * 6, IGNORED) for n in range(8)]),
        ),
        ("ForQuestionAnswering", question_answering, readings(*[(n % 4 + 1, n % 4 + 2) for n in range(8)])),
    ],
    ids=["masked", "class", "tag", "span"],
)
def test_the_loss_falls_on_eight_examples(
    tmp_path: Path, head: str, objective: Objective[Reading], examples: list[Reading]
) -> None:
    model = checkpoint.load(tiny_encoders.checkpoint(tmp_path, "bert", head))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    before = mean_loss(model, objective, examples, budget=64)
    train(model, objective, examples, Recipe(learning_rate=0.01, epochs=60, budget=64), watch=Watch())
    assert mean_loss(model, objective, examples, budget=64) < 0.5 * before
