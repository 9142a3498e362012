"""The one training loop: accumulate, clip, step, evaluate, checkpoint, heed a cancel.

It knows nothing of objectives: an objective maps a model and a pass of examples to a Loss. What a step learns from is
its examples as they are, once, unless `prepare` makes a Lesson of them. All state lies in the model, the optimizer and
a Position, so a run that is killed and resumed ends with the same weights.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from trefoil.training import saved_state
from trefoil.training.batch import Pass, plan_epoch, plan_steps
from trefoil.training.masters import Masters
from trefoil.training.saved_state import Position
from trefoil_models.checkpoint import Model


@dataclass(frozen=True, slots=True)
class Loss:
    """A sum over labels (or pairs), and over how many; a step descends on their quotient over all its passes.

    `sums` are told as means over the same.
    """

    total: Tensor
    weight: int
    sums: Mapping[str, Tensor] = field(default_factory=dict)


E = TypeVar("E", bound=Sized)
Objective = Callable[[Model, Sequence[E]], Loss]


@dataclass(frozen=True, slots=True)
class Lesson(Generic[E]):
    """What a step learns from: the passes of each of its updates, and what is told besides."""

    updates: Sequence[Sequence[Sequence[E]]]
    told: Mapping[str, float] = field(default_factory=dict)


Prepare = Callable[[Sequence[Sequence[Any]], int], Lesson[Any]]
"""The passes of a step's examples, and how many steps were done before, to its lesson."""


def as_they_are(passes: Sequence[Sequence[Any]], _step: int) -> Lesson[Any]:
    """One update from the examples themselves."""
    return Lesson([passes])


def _cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


def _linear(done: float) -> float:
    return 1 - done


def _constant(done: float) -> float:
    return 1.0


SCHEDULES: Mapping[str, Callable[[float], float]] = {"cosine": _cosine, "linear": _linear, "constant": _constant}
"""What is left of the peak rate above its floor, by how much of the way after the warm-up is done."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. `budget` is rows in a pass; intervals count steps, 0 is never.

    A step takes `batch_size` examples, or, where that is None, `accumulate` passes of whatever fits them. What is
    published on the way is published every `publish_every` steps, or at the end of each epoch where that is 0.
    """

    learning_rate: float
    epochs: int = 1
    budget: int = 4096
    accumulate: int = 1
    batch_size: int | None = None
    warmup: float = 0.05
    schedule: str = "cosine"
    final_rate: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip: float = 1.0
    report_every: int = 10
    evaluate_every: int = 0
    checkpoint_every: int = 0
    publish_every: int = 0
    seed: int = 0

    def rate(self, step: int, num_steps: int) -> float:
        """Up in a line over the first `warmup` of the steps, then down to `final_rate` of the peak."""
        num_warm = max(1, round(self.warmup * num_steps))
        if step < num_warm:
            return self.learning_rate * (step + 1) / num_warm
        done = (step - num_warm) / max(1, num_steps - num_warm)
        left = SCHEDULES[self.schedule](done)
        return self.learning_rate * (self.final_rate + (1 - self.final_rate) * left)

    def plan(self, lens: Sequence[int], epoch: int) -> list[list[Pass]]:
        """The passes of each step of one epoch."""
        if self.batch_size is not None:
            return plan_steps(lens, self.budget, batch_size=self.batch_size, seed=self.seed, epoch=epoch)
        passes = plan_epoch(lens, self.budget, seed=self.seed, epoch=epoch)
        return [passes[start : start + self.accumulate] for start in range(0, len(passes), self.accumulate)]


@dataclass(frozen=True, slots=True)
class Progress:
    """What one step did; `loss` and the metrics are means per label, `grad_norm` one over its updates, unclipped."""

    step: int
    num_steps: int
    epoch: int
    loss: float
    grad_norm: float
    rate: float
    num_rows: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told and asked while training goes on."""

    report: Callable[[Progress], None] = lambda progress: None
    evaluate: Callable[[int], None] = lambda step: None
    publish: Callable[[Progress], None] = lambda progress: None
    heed: Callable[[], bool] = lambda: False
    """True: save and stop after this step."""
    is_save_due: Callable[[], bool] = lambda: False
    """True: save after this step and go on."""
    saving: Callable[[], None] = lambda: None
    """What was reported is to be kept now: once the state is saved, nobody computes these steps again."""
    saved: Callable[[int], None] = lambda step: None
    finished: Callable[[int], None] = lambda num_rows: None
    """All steps are done; so many rows were trained on."""


class DivergedError(RuntimeError):
    """The loss or its gradient is no longer a number."""


def train(
    model: Model,
    objective: Objective[E],
    examples: Sequence[E],
    recipe: Recipe,
    *,
    watch: Watch,
    folder: Path | None = None,
    prepare: Prepare = as_they_are,
    beside: Mapping[str, nn.Parameter] | None = None,
) -> bool:
    """Train the parameters that ask for gradients; True when all steps are done, False when told to stop.

    Parameters `beside` the model's are trained too. Where `folder` holds a checkpoint of the same run, training goes on
    from there. Raises DivergedError.
    """
    run = Run(model, objective, examples, recipe, prepare=prepare, beside=beside or {})
    if folder is not None:
        run.resume(folder)
    model.train(True)
    is_stopping = False
    while run.position.step < run.num_steps and not is_stopping:
        progress = run.step()
        is_stopping = watch.heed()
        _tell(watch, recipe, progress, model)
        if progress.step in run.publish_at:
            watch.publish(progress)
        if folder is not None and (
            is_stopping or _is_due(progress.step, recipe.checkpoint_every) or watch.is_save_due()
        ):
            watch.saving()
            run.save(folder)
            watch.saved(progress.step)
    model.train(False)
    is_done = run.position.step == run.num_steps
    if is_done:
        watch.finished(run.position.num_rows)
    return is_done


def mean_loss(model: Model, objective: Objective[E], examples: Sequence[E], *, budget: int) -> float:
    """The objective's mean over examples that are not trained on."""
    return evaluate(model, objective, examples, budget=budget)["loss"]


@torch.no_grad()
def evaluate(model: Model, objective: Objective[E], examples: Sequence[E], *, budget: int) -> dict[str, float]:
    """The objective's `loss` and metrics over examples that are not trained on, with the same draws each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _evaluated(model, objective, examples, budget=budget)


def _evaluated(model: Model, objective: Objective[E], examples: Sequence[E], *, budget: int) -> dict[str, float]:
    passes = plan_epoch([len(example) for example in examples], budget, seed=0, epoch=0)
    tally = Tally()
    for numbers in passes:
        tally.add(objective(model, [examples[n] for n in numbers]))
    return tally.means


class Tally:
    """Sums of losses over passes, left on the device until they are asked for."""

    def __init__(self) -> None:
        self.weight = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, loss: Loss) -> None:
        self._take(loss.weight, {"loss": loss.total.detach(), **loss.sums})

    def merge(self, other: "Tally") -> None:
        """Count what the other has counted too."""
        self._take(other.weight, other._sums)

    def _take(self, weight: int, sums: Mapping[str, Tensor]) -> None:
        self.weight += weight
        for name, value in sums.items():
            before = self._sums.get(name)
            self._sums[name] = value.double() if before is None else before + value

    @property
    def means(self) -> dict[str, float]:
        """Each sum by the common weight; the loss's name is `loss`."""
        return {name: float(value) / self.weight for name, value in self._sums.items()}


def _tell(watch: Watch, recipe: Recipe, progress: Progress, model: Model) -> None:
    if _is_due(progress.step, recipe.report_every) or progress.step == progress.num_steps:
        watch.report(progress)
    if _is_due(progress.step, recipe.evaluate_every):
        model.train(False)
        watch.evaluate(progress.step)
        model.train(True)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class Run(Generic[E]):
    """One training under way: the model, its optimizer, and where in the data it stands."""

    def __init__(
        self,
        model: Model,
        objective: Objective[Any],
        examples: Sequence[E],
        recipe: Recipe,
        *,
        prepare: Prepare,
        beside: Mapping[str, nn.Parameter],
    ) -> None:
        self.model, self.objective, self.examples, self.recipe = model, objective, examples, recipe
        self.prepare = prepare
        self.masters = Masters({name: p for name, p in model.named_parameters() if p.requires_grad} | dict(beside))
        self.optimizer = adamw(self.masters.named, recipe)
        self.position = Position(step=0, epoch=0, taken=0, updates=0, num_rows=0)
        self.lens = [len(example) for example in examples]
        self.steps = recipe.plan(self.lens, 0)
        self.fingerprint = hashlib.sha256(repr((recipe, self.lens)).encode()).hexdigest()
        ends = list(accumulate(len(recipe.plan(self.lens, epoch)) for epoch in range(recipe.epochs)))
        self.num_steps = ends[-1]
        every = recipe.publish_every
        self.publish_at = frozenset(range(every, self.num_steps + 1, every) if every else ends)

    def step(self) -> Progress:
        """Every update from the step's lesson."""
        rate = self.recipe.rate(self.position.step, self.num_steps)
        lesson = self._lesson()
        tally, norms = Tally(), []
        for passes in lesson.updates:
            learned, norm = self._update(passes, rate)
            tally.merge(learned)
            norms.append(norm)
        metrics = tally.means
        loss = metrics.pop("loss")
        num_rows = sum(len(example) for passes in lesson.updates for some in passes for example in some)
        epoch = self.position.epoch
        self._advance(len(norms), num_rows)
        return Progress(
            self.position.step,
            self.num_steps,
            epoch,
            loss,
            sum(norms) / len(norms),
            rate,
            num_rows,
            {**lesson.told, **metrics},
        )

    def save(self, folder: Path) -> None:
        """Everything that `resume` needs."""
        saved_state.save(folder, self.masters.named, self.optimizer, self.position, run=self.fingerprint)

    def resume(self, folder: Path) -> None:
        """Go on from the folder's checkpoint, where there is one."""
        position = saved_state.load(folder, self.masters.named, self.optimizer, run=self.fingerprint)
        if position is not None:
            self.masters.spread()
            self.position, self.steps = position, self.recipe.plan(self.lens, position.epoch)

    def _lesson(self) -> Lesson[Any]:
        passes = [[self.examples[n] for n in numbers] for numbers in self.steps[self.position.taken]]
        return self.prepare(passes, self.position.step)

    def _update(self, passes: Sequence[Sequence[Any]], rate: float) -> tuple[Tally, float]:
        """Change the weights once; what was learned from, and the gradient's norm. Raises DivergedError."""
        tally = self._accumulate(passes)
        norm = float(nn.utils.clip_grad_norm_(self.masters.named.values(), self.recipe.clip))
        loss = tally.means["loss"]
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(f"step {self.position.step + 1}: loss {loss}, gradient norm {norm}: lower the rate")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.masters.spread()
        return tally, norm

    def _accumulate(self, passes: Sequence[Sequence[Any]]) -> Tally:
        """Leave the gradient of the mean over all labels of these passes; their sums."""
        self.optimizer.zero_grad(set_to_none=True)
        tally = Tally()
        for examples in passes:
            loss = self.objective(self.model, examples)
            loss.total.backward()  # type: ignore[no-untyped-call]
            self.masters.gather()
            tally.add(loss)
        for parameter in self.masters.named.values():
            if parameter.grad is not None:
                parameter.grad /= tally.weight
        return tally

    def _advance(self, num_updates: int, num_rows: int) -> None:
        before = self.position
        epoch, taken = before.epoch, before.taken + 1
        if taken >= len(self.steps):
            epoch, taken = epoch + 1, 0
            self.steps = self.recipe.plan(self.lens, epoch)
        self.position = Position(
            before.step + 1, epoch, taken, before.updates + num_updates, before.num_rows + num_rows
        )


def adamw(named: dict[str, nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101); matrices decay, norms and biases do not."""
    matrices = [parameter for parameter in named.values() if parameter.dim() > 1]
    vectors = [parameter for parameter in named.values() if parameter.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps)
