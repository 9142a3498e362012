"""The one training loop: accumulate, clip, step, evaluate, checkpoint, heed a cancel.

It knows nothing of objectives: an objective maps a model and a pass of examples to a Loss. All state lies in the
model, the optimizer and a Position, so a run that is killed and resumed ends with the same weights.
"""

import hashlib
import math
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from trefoil.training import saved_state
from trefoil.training.batch import plan_epoch
from trefoil.training.saved_state import Position
from trefoil_models.checkpoint import Model


@dataclass(frozen=True, slots=True)
class Loss:
    """A sum over labels (or pairs), and over how many; a step descends on their quotient over all its passes."""

    total: Tensor
    weight: int


E = TypeVar("E", bound=Sized)
Objective = Callable[[Model, Sequence[E]], Loss]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. `budget` is rows in a pass, `accumulate` passes in a step; intervals count steps, 0 is never."""

    learning_rate: float
    epochs: int = 1
    budget: int = 4096
    accumulate: int = 1
    warmup: float = 0.05
    schedule: Literal["cosine", "linear"] = "cosine"
    final_rate: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip: float = 1.0
    report_every: int = 10
    evaluate_every: int = 0
    checkpoint_every: int = 0
    seed: int = 0

    def rate(self, step: int, num_steps: int) -> float:
        """Up in a line over the first `warmup` of the steps, then down to `final_rate` of the peak."""
        num_warm = max(1, round(self.warmup * num_steps))
        if step < num_warm:
            return self.learning_rate * (step + 1) / num_warm
        done = (step - num_warm) / max(1, num_steps - num_warm)
        left = (1 + math.cos(math.pi * done)) / 2 if self.schedule == "cosine" else 1 - done
        return self.learning_rate * (self.final_rate + (1 - self.final_rate) * left)


@dataclass(frozen=True, slots=True)
class Progress:
    """What one step did; `loss` and `grad_norm` are means per label, before clipping."""

    step: int
    num_steps: int
    loss: float
    grad_norm: float
    rate: float


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told and asked while training goes on."""

    report: Callable[[Progress], None] = lambda progress: None
    evaluate: Callable[[int], None] = lambda step: None
    heed: Callable[[], bool] = lambda: False
    """True: save and stop after this step."""


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
) -> bool:
    """Train the parameters that ask for gradients; True when all steps are done, False when told to stop.

    Where `folder` holds a checkpoint of the same run, training goes on from there. Raises DivergedError.
    """
    run = Run(model, objective, examples, recipe)
    if folder is not None:
        run.resume(folder)
    model.train(True)
    is_stopping = False
    while run.position.step < run.num_steps and not is_stopping:
        progress = run.step()
        is_stopping = watch.heed()
        _tell(watch, recipe, progress, model)
        if folder is not None and (is_stopping or _is_due(progress.step, recipe.checkpoint_every)):
            run.save(folder)
    model.train(False)
    return run.position.step == run.num_steps


@torch.no_grad()
def mean_loss(model: Model, objective: Objective[E], examples: Sequence[E], *, budget: int) -> float:
    """The objective's mean over examples that are not trained on."""
    lens = [len(example) for example in examples]
    passes = plan_epoch(lens, budget, seed=0, epoch=0)
    losses = [objective(model, [examples[n] for n in numbers]) for numbers in passes]
    return sum(float(loss.total) for loss in losses) / sum(loss.weight for loss in losses)


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

    def __init__(self, model: Model, objective: Objective[E], examples: Sequence[E], recipe: Recipe) -> None:
        self.model, self.objective, self.examples, self.recipe = model, objective, examples, recipe
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = adamw(self.named, recipe)
        self.position = Position(step=0, epoch=0, taken=0)
        self.passes = self._plan(0)
        self.fingerprint = hashlib.sha256(repr((recipe, self._lens())).encode()).hexdigest()
        self.num_steps = sum(-(-len(self._plan(e)) // recipe.accumulate) for e in range(recipe.epochs))

    def step(self) -> Progress:
        """One update from the next `accumulate` passes, fewer at an epoch's end."""
        rate = self.recipe.rate(self.position.step, self.num_steps)
        loss = self._accumulate(self.passes[self.position.taken : self.position.taken + self.recipe.accumulate])
        norm = float(nn.utils.clip_grad_norm_(self.named.values(), self.recipe.clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(f"step {self.position.step + 1}: loss {loss}, gradient norm {norm}: lower the rate")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self._advance()
        return Progress(self.position.step, self.num_steps, loss, norm, rate)

    def save(self, folder: Path) -> None:
        """Everything that `resume` needs."""
        saved_state.save(folder, self.named, self.optimizer, self.position, run=self.fingerprint)

    def resume(self, folder: Path) -> None:
        """Go on from the folder's checkpoint, where there is one."""
        position = saved_state.load(folder, self.named, self.optimizer, run=self.fingerprint)
        if position is not None:
            self.position, self.passes = position, self._plan(position.epoch)

    def _accumulate(self, passes: list[list[int]]) -> float:
        """Leave the gradient of the mean over all labels of these passes; the mean loss."""
        self.optimizer.zero_grad(set_to_none=True)
        total, weight = 0.0, 0
        for numbers in passes:
            loss = self.objective(self.model, [self.examples[n] for n in numbers])
            loss.total.backward()  # type: ignore[no-untyped-call]
            total, weight = total + float(loss.total.detach()), weight + loss.weight
        for parameter in self.named.values():
            if parameter.grad is not None:
                parameter.grad /= weight
        return total / weight

    def _advance(self) -> None:
        step, epoch, taken = self.position.step + 1, self.position.epoch, self.position.taken + self.recipe.accumulate
        if taken >= len(self.passes):
            epoch, taken = epoch + 1, 0
            self.passes = self._plan(epoch)
        self.position = Position(step, epoch, taken)

    def _plan(self, epoch: int) -> list[list[int]]:
        return plan_epoch(self._lens(), self.recipe.budget, seed=self.recipe.seed, epoch=epoch)

    def _lens(self) -> list[int]:
        return [len(example) for example in self.examples]


def adamw(named: dict[str, nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101); matrices decay, norms and biases do not."""
    matrices = [parameter for parameter in named.values() if parameter.dim() > 1]
    vectors = [parameter for parameter in named.values() if parameter.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps)
