"""How examples travel: packed into passes of about equally many rows, in an order that a seed decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from trefoil.training.examples import Example
from trefoil_models.attend import packed_pairs, packed_rows
from trefoil_models.checkpoint import Model

__all__ = ["Example", "Labels", "label_logprobs", "plan_epoch", "plan_steps", "scored_labels"]

Pass = list[int]
"""The numbers of the examples that go through the model together."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a pass, all examples one after the other, and how many each example has."""

    hidden_RM: Tensor
    ids_R: Tensor
    logprobs_R: Tensor
    is_top_R: Tensor
    lens: tuple[int, ...]

    def sums(self) -> Tensor:
        """log p of each example's labels together, [N]."""
        return torch.stack([logprobs.sum() for logprobs in torch.split(self.logprobs_R, list(self.lens))])


def scored_labels(model: Model, examples: Sequence[Example], *, temperature: float = 1.0) -> Labels:
    """Every label of the examples, from one packed pass; only rows that predict one meet the head."""
    device = model.lm_head.weight.device
    hidden_TM = _hidden(model, examples)
    is_label_T = torch.tensor([learn for example in examples for learn in example.is_label[1:]], device=device)
    next_T = torch.tensor([i for example in examples for i in example.ids[1:]], device=device)
    hidden_RM, ids_R = hidden_TM[is_label_T], next_T[is_label_T]
    lens = tuple(example.num_labels for example in examples)
    return Labels(hidden_RM, ids_R, *model.lm_head.scored(hidden_RM, ids_R, temperature=temperature), lens)


def _hidden(model: Any, examples: Sequence[Example]) -> Tensor:
    """The rows before each id of the examples but their first, [T, M]; a source is read by the encoder first."""
    device, inputs = model.lm_head.weight.device, [example.ids[:-1] for example in examples]
    if not examples[0].source:
        return model(*packed_rows(inputs, device))
    pairs = packed_pairs([example.source for example in examples], inputs, device)
    model.encode(pairs.encoder_rows, pairs.here, pairs.there)
    return model(pairs.rows, pairs.there)


def label_logprobs(model: Model, examples: Sequence[Example]) -> Tensor:
    """log p of every label of the examples in order, float32 [R]."""
    return scored_labels(model, examples).logprobs_R


def plan_epoch(lens: Sequence[int], budget: int, *, seed: int, epoch: int) -> list[Pass]:
    """Passes of one epoch: shuffled examples, cut where the next would exceed the budget.

    An example longer than the budget makes a pass alone. The same arguments always give the same plan.
    """
    return _cut(shuffled(len(lens), seed=seed, epoch=epoch), lens, budget)


def plan_steps(lens: Sequence[int], budget: int, *, batch_size: int, seed: int, epoch: int) -> list[list[Pass]]:
    """Steps of `batch_size` examples each, fewer in the last, every step cut into passes within the budget."""
    order = shuffled(len(lens), seed=seed, epoch=epoch)
    batches = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    return [_cut(batch, lens, budget) for batch in batches]


def shuffled(count: int, *, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch takes its examples."""
    order = list(range(count))
    Random(f"{seed} {epoch}").shuffle(order)
    return order


def _cut(order: Sequence[int], lens: Sequence[int], budget: int) -> list[Pass]:
    passes: list[Pass] = []
    rows = budget
    for number in order:
        if rows + lens[number] > budget:
            passes.append([])
            rows = 0
        passes[-1].append(number)
        rows += lens[number]
    return passes
