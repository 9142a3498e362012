"""Losses are those of a plain computation, however examples are packed."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from trefoil.training.batch import Example
from trefoil.training.objectives.causal_lm import causal_lm
from trefoil.training.objectives.sft import Sft
from trefoil_models.checkpoint import Model


def draw(lens: tuple[int, ...]) -> list[Example]:
    """Random ids; in each example the first half of the ids is prompt."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(0, 300, (length,), generator=generator).tolist() for length in lens]
    return [Example(tuple(ids), tuple(n >= len(ids) // 2 for n in range(len(ids)))) for ids in drawn]


def gradients(model: Model, total: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(total, parameters), strict=True))


@pytest.mark.parametrize("objective", [causal_lm, Sft()])
def test_packed_loss_and_gradient_are_the_sum_of_each_alone(model: Model, objective: object) -> None:
    assert callable(objective)
    examples = draw((9, 2, 17, 5))
    packed, alone = objective(model, examples), [objective(model, [example]) for example in examples]
    assert packed.weight == sum(loss.weight for loss in alone) == sum(sum(example.is_label) for example in examples)
    torch.testing.assert_close(packed.total, sum(loss.total for loss in alone))
    together = gradients(model, packed.total)
    apart = gradients(model, sum(loss.total for loss in alone))
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)


def test_sft_loss_and_gradient_norm_equal_transformers(model: Model, folder: Path) -> None:
    theirs = tiny.oracle(folder)
    examples = draw((9, 12, 7))
    total = torch.zeros(())
    for example in examples:
        labels = [i if learn else -100 for i, learn in zip(example.ids, example.is_label, strict=True)]
        logits = theirs(torch.tensor([example.ids])).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum")
    ours = Sft()(model, examples)
    (total / ours.weight).backward()
    (ours.total / ours.weight).backward()
    torch.testing.assert_close(ours.total, total, atol=1e-4, rtol=1e-5)
    assert abs(norm(model.parameters()) - norm(theirs.parameters())) < 1e-4


def norm(parameters: object) -> float:
    return float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))  # type: ignore[attr-defined]
