"""One attempt at a job: the model and the examples it asks for, the loop over them, and what is told and kept.

Steps, losses and files are the same whichever attempt computes them, so what an earlier one has told or kept already
is not told or kept again.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from trefoil import hyperparameters as given_kinds
from trefoil.store.catalog import ADAPTER, WHOLE, StoredModel
from trefoil.store.jobs import Claim, Job, Want
from trefoil.store.store import Store
from trefoil.training import reference
from trefoil.training.course import course_of
from trefoil.training.folders import job_folder, model_folder, write_whole
from trefoil.training.heads import head_of
from trefoil.training.loop import Progress, Recipe, Watch, train
from trefoil.training.sources import Sources
from trefoil.wire import WorkerSpec
from trefoil_models import checkpoint
from trefoil_models.adapter_files import read_adapter, save_adapter
from trefoil_models.checkpoint import DTYPES, Model
from trefoil_models.lora import ALL_LINEAR, LoraShape, attach, attach_given, merge
from trefoil_models.new_head import load_under

ROWS_PER_PASS = {"cpu": 2048, "cuda": 16384}
EVENTS_EVERY_S = 1.0
SAVE_SHARE = 20
"""States are saved so seldom that saving takes at most one part in so many of the time."""
COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")


class LeaseLost(Exception):
    """Another attempt has begun: this one must not go on."""


class Attempt:
    """Everything one attempt needs. `is_stopping` is asked after each step."""

    def __init__(self, store: Store, spec: WorkerSpec, claim: Claim, is_stopping: Callable[[], bool]) -> None:
        self.store, self.claim, self.is_stopping = store, claim, is_stopping
        self.job: Job = store.jobs.get(claim.job_id)
        self.sources = Sources.open(store, self.job.spec)
        self.given = self.sources.given
        self.device = torch.device(spec.device)
        self.config = dict(self.sources.folder.config.values)
        self.saving = Saving(spec.checkpoint_s)
        self.diary = Diary(store, claim)
        self.folder = job_folder(store.folder, self.job.id)
        self.budget = ROWS_PER_PASS[self.device.type] if self.given.packing else 1

    def run(self) -> bool:
        """Train to the end; False where it was stopped first. Raises LeaseLost."""
        self.folder.mkdir(parents=True, exist_ok=True)
        model, shape = self.load()
        course = course_of(self.sources, self.given, model, budget=self.budget)
        examples = self._known(model, list(self.sources.training()), "training")
        held_out = self._known(model, list(self.sources.validation()), "validation")
        trainee = Trainee(self, model, shape)

        def measure(step: int) -> Mapping[str, float]:
            if not held_out:
                return {}
            model.train(False)
            found = course.measure(held_out)
            model.train(True)
            names = {"loss": "valid_loss"}
            return {names.get(name, f"valid_{name}"): value for name, value in found.items()}

        def publish(progress: Progress) -> None:
            trainee.publish(progress, measure(progress.step))

        def finish(num_rows: int) -> None:
            self.diary.flush()
            trainee.finish({"trained_tokens": num_rows})

        watch = Watch(
            report=self.diary.report,
            evaluate=lambda step: self.diary.evaluated(step, measure(step)),
            publish=publish,
            heed=self._is_to_stop,
            is_save_due=self.saving.is_due,
            saving=self.diary.flush,
            saved=self._saved,
            finished=finish,
        )
        recipe = self.recipe(has_validation=bool(held_out))
        num_tokens = sum(len(example) for example in examples) * recipe.epochs
        self.diary.begin(num_tokens, "answer" if isinstance(self.given, given_kinds.Sampled) else "train on")
        return train(
            model,
            course.objective,
            examples,
            recipe,
            watch=watch,
            folder=self.folder,
            prepare=course.prepare,
            beside=course.beside,
        )

    def load(self) -> tuple[Model, LoraShape | None]:
        """The base model ready to be trained: with an adapter, or with all its weights asking for gradients."""
        folder, seed = self.sources.folder, self.job.spec.seed
        dtype = DTYPES["bfloat16"] if self.given.bf16 else DTYPES["float32"]
        head = head_of(self.given, folder)
        if head is None:
            model = checkpoint.inspect(folder.path).load(dtype=dtype, device=self.device)
        else:
            model, self.config = load_under(folder.path, head, seed=seed, dtype=dtype, device=self.device)
        torch.manual_seed(self.job.spec.seed)
        if self.given.gradient_checkpointing:
            recompute_layers(model)
        shape = self._adapt(model)
        if shape is None:
            for parameter in model.parameters():
                parameter.requires_grad_(True)
        return model, shape

    def _adapt(self, model: Model) -> LoraShape | None:
        """Put a fresh adapter on, or go on with the one the base model is; None where all weights are trained."""
        lora, own = self.given.lora, self.job.spec.adapter
        given = read_adapter(Path(own), model) if own is not None else None
        if lora is None:
            if given is not None:
                attach_given(model, given.lows)
                merge(model)
            return None
        if given is not None:
            attach_given(model, given.lows, dropout=lora.dropout)
            return given.shape
        targets = (lora.target_modules,) if isinstance(lora.target_modules, str) else tuple(lora.target_modules)
        shape = LoraShape(lora.r, lora.alpha, lora.dropout, targets or (ALL_LINEAR,))
        attach(model, shape, seed=self.job.spec.seed)
        return shape

    def recipe(self, *, has_validation: bool) -> Recipe:
        """The hyperparameters as the loop knows them."""
        given = self.given
        assert not isinstance(given.n_epochs, str)
        assert not isinstance(given.batch_size, str)
        assert not isinstance(given.learning_rate, str)
        return Recipe(
            learning_rate=given.learning_rate,
            epochs=given.n_epochs,
            budget=self.budget,
            batch_size=given.batch_size * given.gradient_accumulation_steps,
            warmup=given.warmup_ratio,
            schedule=given.lr_scheduler,
            final_rate=0.0,
            weight_decay=given.weight_decay,
            betas=(given.adam_beta1, given.adam_beta2),
            eps=given.adam_epsilon,
            clip=given.max_grad_norm,
            report_every=given.logging_steps,
            evaluate_every=(given.eval_steps or 0) if has_validation else 0,
            publish_every=given.save_steps or 0,
            seed=self.job.spec.seed,
        )

    def _known(self, model: Model, examples: list[Any], name: str) -> list[Any]:
        """Preferences are compared with what the model thought before it was trained."""
        if not isinstance(self.given, given_kinds.Dpo) or not examples:
            return examples
        model.train(False)
        return reference.known_pairs(model, examples, self.folder, name, budget=self.budget)

    def _is_to_stop(self) -> bool:
        """Asked after each step: nothing is computed that nobody wants any more. Raises LeaseLost."""
        if self.is_stopping():
            return True
        want = self.store.jobs.wanted(self.claim)
        if want is None:
            raise LeaseLost
        return want != Want.RUN

    def _saved(self, step: int) -> None:
        self.saving.done()
        if not self.store.jobs.progressed(self.claim, f"Checkpoint at step {step}"):
            raise LeaseLost


class Trainee:
    """The model in training, and how it is published under its names."""

    def __init__(self, attempt: Attempt, model: Model, shape: LoraShape | None) -> None:
        self.attempt, self.model, self.shape = attempt, model, shape
        self.name = model_name(attempt.job)

    def publish(self, progress: Progress, measured: Mapping[str, float]) -> None:
        """Keep the model as it is after this step, to be asked under a name of its own. Raises LeaseLost."""
        self.attempt.diary.flush()
        metrics = {"step": progress.step, **train_metrics(progress), **measured}
        metrics.update({f"full_{name}": value for name, value in measured.items()})
        model = self._written(f"{self.name}:ckpt-step-{progress.step}", progress.step, metrics)
        if not self.attempt.store.jobs.progressed(self.attempt.claim, f"Checkpoint created: {model.name}", model):
            raise LeaseLost
        self._forget_old()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Publish the finished model and end the job. Raises LeaseLost."""
        model = self._written(self.name, None, None)
        if not self.attempt.store.jobs.succeed(self.attempt.claim, {**result, "fine_tuned_model": self.name}, model):
            raise LeaseLost

    def _written(self, name: str, step: int | None, metrics: dict[str, Any] | None) -> StoredModel:
        job = self.attempt.job
        folder = model_folder(self.attempt.store.folder, job.id, step)
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder, self._write)
        kind = WHOLE if self.shape is None else ADAPTER
        return StoredModel(name, job.spec.model, kind, str(folder), job.id, step, metrics)

    def _write(self, folder: Path) -> None:
        if self.shape is not None:
            save_adapter(self.model, folder, self.shape, base=self.attempt.job.spec.model)
            return
        base = self.attempt.sources.folder
        checkpoint.save(self.model, folder, self.attempt.config)
        for pattern in COPIED:
            for path in base.path.glob(pattern):
                if path.name != "config.json" and not path.name.endswith(".index.json"):
                    shutil.copyfile(path, folder / path.name)

    def _forget_old(self) -> None:
        """Keep only the latest checkpoints."""
        store, job = self.attempt.store, self.attempt.job
        for old in store.catalog.checkpoints(job.id)[self.attempt.given.save_total_limit :]:
            store.catalog.drop(old.name)
            shutil.rmtree(old.folder, ignore_errors=True)


class Diary:
    """Metrics on their way to the job's events: a step is told once, about one write a second."""

    def __init__(self, store: Store, claim: Claim) -> None:
        self._store, self._claim = store, claim
        self._told = store.jobs.last_step(claim.job_id)
        self._pending: list[Metric] = []
        self._flushed = self._counted = time.monotonic()
        self._num_rows = 0

    def begin(self, num_tokens: int, purpose: str) -> None:
        """Training starts."""
        self._store.jobs.log(self._claim, f"Fine-tuning job started, {num_tokens} tokens to {purpose}")
        self._counted = time.monotonic()

    def report(self, progress: Progress) -> None:
        """A step is done."""
        moment = time.monotonic()
        self._num_rows += progress.num_rows
        if progress.step > self._told:
            data = {
                "step": progress.step,
                "total_steps": progress.num_steps,
                "epoch": progress.epoch,
                **train_metrics(progress),
                "learning_rate": progress.rate,
                "grad_norm": progress.grad_norm,
                "tokens_per_second": round(progress.num_rows / max(moment - self._counted, 1e-9), 1),
            }
            told = f"Step {progress.step}/{progress.num_steps}: training loss={progress.loss:.4f}"
            self._pending.append(Metric(told, data))
        self._counted = moment
        if moment - self._flushed > EVENTS_EVERY_S or progress.step == progress.num_steps:
            self.flush()

    def evaluated(self, step: int, measured: Mapping[str, float]) -> None:
        """The held-out examples were looked at."""
        if step >= self._told:
            names = [name for name in ("loss", "reward") if f"valid_{name}" in measured]
            told = f"Step {step}: validation " + ", ".join(f"{name}={measured[f'valid_{name}']:.4f}" for name in names)
            self._pending.append(Metric(told, {"step": step, **measured}))

    def flush(self) -> None:
        """Write down what is pending. Raises LeaseLost."""
        pending, self._pending = self._pending, []
        self._flushed = time.monotonic()
        if pending and not self._store.jobs.log_metrics(self._claim, [(m.message, m.data) for m in pending]):
            raise LeaseLost


@dataclass(frozen=True, slots=True)
class Metric:
    """One event to be."""

    message: str
    data: dict[str, Any]


class Saving:
    """When a state is worth saving: every so many seconds, and seldom enough to cost little."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._next = time.monotonic() + every_s
        self._asked = 0.0

    def is_due(self) -> bool:
        self._asked = time.monotonic()
        return self._asked >= self._next

    def done(self) -> None:
        moment = time.monotonic()
        self._next = moment + max(self._every_s, SAVE_SHARE * (moment - self._asked))


def train_metrics(progress: Progress) -> dict[str, float]:
    """The loss and what the objective tells besides, under OpenAI's names where it has some."""
    own = {name: f"train_{name}" for name in ("mean_token_accuracy", "mean_accuracy")}
    return {"train_loss": progress.loss, **{own.get(name, name): value for name, value in progress.metrics.items()}}


def model_name(job: Job) -> str:
    """`ft:<base>:<suffix>:<id>`; a model made from a fine-tuned one names the base of them all."""
    base = job.spec.model.removeprefix("ft:").split(":")[0]
    return f"ft:{base}:{job.spec.suffix or ''}:{job.id.removeprefix('ftjob-')[:8]}"


def recompute_layers(model: Any) -> None:
    """Let every layer keep only its input and compute itself again for the gradient."""
    for layers in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
        for layer in layers:
            layer.forward = partial(recompute, layer.forward, use_reentrant=False)
