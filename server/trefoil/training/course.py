"""How a job's method teaches its model: the loss, what a step learns from, and how held-out examples are measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from trefoil import hyperparameters as given_kinds
from trefoil import wire
from trefoil.hyperparameters import Hyperparameters, Sampled
from trefoil.training.balance import balanced
from trefoil.training.judge import Judge
from trefoil.training.loop import Objective, Prepare, as_they_are, evaluate
from trefoil.training.objectives import objective_of, policy_of
from trefoil.training.origin import Origin
from trefoil.training.practice import Practice
from trefoil.training.rollout import Rollout
from trefoil.training.sources import Sources
from trefoil_models.checkpoint import Model

NEXT_TOKEN = (given_kinds.Supervised, given_kinds.Pretrain, given_kinds.Dpo)
"""What descends on the likelihood of text, to which a mixture's own loss of balance is added."""


@dataclass(frozen=True, slots=True)
class Course:
    """What the loop is given; `beside` are parameters that learn beside the model's."""

    objective: Objective[Any]
    measure: Callable[[Sequence[Any]], dict[str, float]]
    prepare: Prepare = as_they_are
    beside: Mapping[str, nn.Parameter] = field(default_factory=dict)


def course_of(sources: Sources, given: Hyperparameters, model: Model, *, budget: int) -> Course:
    """The course for a model that has not learned yet. Raises CheckpointError where it lacks what it needs."""
    if isinstance(given, Sampled):
        return _practised(sources, given, model, budget=budget)
    objective = objective_of(given, sources.reader)
    if isinstance(given, NEXT_TOKEN):
        objective = balanced(objective, model)
    return Course(objective, partial(evaluate, model, objective, budget=budget))


def _practised(sources: Sources, given: Sampled, model: Model, *, budget: int) -> Course:
    policy = policy_of(given, model)
    weight = model.lm_head.weight
    params = wire.SamplingParams(
        max_tokens=given.max_completion_tokens,
        temperature=given.temperature,
        top_k=given.top_k,
        top_p=given.top_p,
        stop_ids=sources.reader.end_ids,
    )
    assert sources.spec.judge is not None
    practice = Practice(
        model,
        policy,
        Rollout(model, sources.reader.tokenizer, params),
        Judge.load(
            Path(sources.spec.judge), given.reward_label, dtype=weight.dtype, device=weight.device, budget=budget
        ),
        Origin(model),
        num_updates=given.num_updates,
        budget=budget,
        seed=sources.spec.seed,
    )
    return Course(policy, practice.measure, practice.lesson, policy.own)
