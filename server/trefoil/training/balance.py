"""The loss that keeps a mixture's experts equally busy ("Switch Transformers", arXiv 2101.03961, eq. 4 to 6).

As transformers adds it to a causal LM's loss: over the rows of all layers together, and only where the model's file
asks for it. The rows are those of the pass, which predict something; the last token of a text is none of them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trefoil.training.loop import Loss, Objective
from trefoil_models.checkpoint import Model
from trefoil_models.mixture import Mixture


def balanced(objective: Objective[Any], model: Any) -> Objective[Any]:
    """The objective itself, or with the routers' loss beside it where the model's mixtures have one."""
    mixtures = [module for module in model.modules() if isinstance(module, Mixture) and module.balance]
    if not mixtures:
        return objective

    def both(model: Model, examples: Sequence[Any]) -> Loss:
        with listening(mixtures) as logits:
            own = objective(model, examples)
        uneven = unevenness(mixtures[0], torch.cat(logits)) * own.weight
        return Loss(
            own.total + mixtures[0].balance * uneven, own.weight, {**own.sums, "router_aux_loss": uneven.detach()}
        )

    return both


def unevenness(mixture: Mixture, logits_RE: Tensor) -> Tensor:
    """E * sum of (rows that chose the expert / rows) * (its mean probability); K when all experts are equally busy."""
    num_rows, num_experts = logits_RE.shape
    chosen_RK = mixture.route(logits_RE.detach(), None).experts_TK
    busy_E = torch.bincount(chosen_RK.flatten(), minlength=num_experts) / num_rows
    return num_experts * (busy_E * logits_RE.softmax(-1).mean(0)).sum()


@contextmanager
def listening(mixtures: Sequence[Mixture]) -> Iterator[list[Tensor]]:
    """What their routers say meanwhile, pass by pass."""
    said: list[Tensor] = []
    hooks = [mixture.gate.register_forward_hook(lambda _gate, _x, logits: said.append(logits)) for mixture in mixtures]
    try:
        yield said
    finally:
        for hook in hooks:
            hook.remove()
