"""The table of objectives: a job's method and hyperparameters to the loss it descends on."""

from collections.abc import Callable, Mapping
from typing import Any

from trefoil import hyperparameters as given_kinds
from trefoil.hyperparameters import Hyperparameters
from trefoil.training.loop import Objective
from trefoil.training.objectives.causal_lm import causal_lm
from trefoil.training.objectives.dpo import Dpo
from trefoil.training.objectives.sft import Sft


def objective_of(given: Hyperparameters) -> Objective[Any]:
    """The loss that these hyperparameters ask for."""
    return OBJECTIVES[type(given)](given)


def _sft(given: Any) -> Objective[Any]:
    return Sft(given.label_smoothing)


def _dpo(given: Any) -> Objective[Any]:
    return Dpo(given.beta, given.loss_type, given.label_smoothing, given.length_normalized)


def _pretrain(given: Any) -> Objective[Any]:
    return causal_lm


OBJECTIVES: Mapping[type[Hyperparameters], Callable[[Any], Objective[Any]]] = {
    given_kinds.Supervised: _sft,
    given_kinds.Dpo: _dpo,
    given_kinds.Pretrain: _pretrain,
}
