"""Examples, and how they travel: packed into passes of about equally many rows, in an order that a seed decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from trefoil_models.attend import packed_rows
from trefoil_models.checkpoint import Model


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence: its ids, and which of them the model must learn to predict from those before."""

    ids: tuple[int, ...]
    is_label: tuple[bool, ...]

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.is_label) >= 2
        assert not self.is_label[0], "nothing comes before the first id"

    def __len__(self) -> int:
        """Rows in a pass: the last id is only ever predicted."""
        return len(self.ids) - 1


def label_logprobs(model: Model, examples: Sequence[Example]) -> Tensor:
    """log p of every label of the examples in order, float32 [R], from one packed pass; only R rows meet the head."""
    device = model.lm_head.weight.device
    rows, attend = packed_rows([example.ids[:-1] for example in examples], device)
    is_label_T = torch.tensor([learn for example in examples for learn in example.is_label[1:]], device=device)
    next_T = torch.tensor([i for example in examples for i in example.ids[1:]], device=device)
    hidden_TM: Tensor = model(rows, attend)
    return model.lm_head.logprobs(hidden_TM[is_label_T], next_T[is_label_T])


def plan_epoch(lens: Sequence[int], budget: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Numbers of the examples of each pass of one epoch: shuffled, then cut where the next would exceed the budget.

    An example longer than the budget makes a pass alone. The same arguments always give the same plan.
    """
    order = list(range(len(lens)))
    Random(f"{seed} {epoch}").shuffle(order)
    passes: list[list[int]] = []
    rows = budget
    for number in order:
        if rows + lens[number] > budget:
            passes.append([])
            rows = 0
        passes[-1].append(number)
        rows += lens[number]
    return passes
