"""The loop learns, stops when told, and goes on as if it had never stopped."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import tiny
from training.conftest import trainable
from trefoil.training.batch import Example, plan_epoch
from trefoil.training.loop import DivergedError, Loss, Progress, Recipe, Watch, mean_loss, train
from trefoil.training.objectives.causal_lm import causal_lm
from trefoil.training.objectives.sft import Sft
from trefoil.training.saved_state import StateError
from trefoil_models.checkpoint import Model

RECIPE = Recipe(learning_rate=1e-2, epochs=4, budget=10, accumulate=2, report_every=1)


def eight() -> list[Example]:
    """Eight short counts, each from its own start."""
    return [Example(tuple(range(n, n + 6)), (False, *[True] * 5)) for n in range(0, 80, 10)]


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("objective", [causal_lm, Sft()])
def test_loss_falls_on_eight_examples(model: Model, objective: object) -> None:
    assert callable(objective)
    told: list[Progress] = []
    recipe = Recipe(learning_rate=1e-2, epochs=30, budget=40, report_every=1)
    assert train(model, objective, eight(), recipe, watch=Watch(report=told.append))
    assert told[-1].loss < 0.2 < 4 < told[0].loss
    assert told[-1].step == told[-1].num_steps == len(told)


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_stopped_and_resumed_run_ends_with_the_same_weights(
    model: Model, same_model: Model, folder: Path, tmp_path: Path, stop_at: int
) -> None:
    train(model, causal_lm, eight(), RECIPE, watch=Watch())
    told: list[Progress] = []
    stop = Watch(report=told.append, heed=lambda: len(told) == stop_at - 1)
    assert not train(same_model, causal_lm, eight(), RECIPE, watch=stop, folder=tmp_path)
    fresh = trainable(folder)
    assert train(fresh, causal_lm, eight(), RECIPE, watch=Watch(), folder=tmp_path)
    for name, weight in weights(model).items():
        assert torch.equal(weights(fresh)[name], weight), name


def test_a_run_is_resumed_though_no_row_ever_chose_some_experts(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base", "mixtral", num_local_experts=32, num_experts_per_tok=1)
    whole, stopped, resumed = (trainable(base) for _ in range(3))
    before = weights(whole)
    recipe = replace(RECIPE, epochs=1, weight_decay=0.0)
    train(whole, causal_lm, eight(), recipe, watch=Watch())
    assert any(".experts." in name and torch.equal(before[name], now) for name, now in weights(whole).items())
    assert not train(stopped, causal_lm, eight(), recipe, watch=Watch(heed=lambda: True), folder=tmp_path)
    assert train(resumed, causal_lm, eight(), recipe, watch=Watch(), folder=tmp_path)
    assert all(torch.equal(weights(resumed)[name], weight) for name, weight in weights(whole).items())


def test_killed_run_goes_on_from_its_last_checkpoint(model: Model, same_model: Model, tmp_path: Path) -> None:
    train(model, causal_lm, eight(), RECIPE, watch=Watch())
    recipe = replace(RECIPE, checkpoint_every=2)

    def fall(progress: Progress) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(same_model, causal_lm, eight(), recipe, watch=Watch(report=fall), folder=tmp_path)
    assert train(same_model, causal_lm, eight(), recipe, watch=Watch(), folder=tmp_path)
    assert all(torch.equal(weights(same_model)[name], weight) for name, weight in weights(model).items())


def test_checkpoint_of_another_model_is_refused(model: Model, tmp_path: Path) -> None:
    train(model, causal_lm, eight(), RECIPE, watch=Watch(heed=lambda: True), folder=tmp_path)
    other = trainable(tiny.checkpoint(tmp_path / "other", "llama", num_hidden_layers=1))
    with pytest.raises(StateError, match="other parameters"):
        train(other, causal_lm, eight(), RECIPE, watch=Watch(), folder=tmp_path)


def test_checkpoint_of_another_run_is_refused(model: Model, tmp_path: Path) -> None:
    train(model, causal_lm, eight(), RECIPE, watch=Watch(heed=lambda: True), folder=tmp_path)
    with pytest.raises(StateError, match="another recipe or other data"):
        train(model, causal_lm, eight()[:7], RECIPE, watch=Watch(), folder=tmp_path)
    with pytest.raises(StateError, match="another recipe or other data"):
        train(model, causal_lm, eight(), replace(RECIPE, seed=1), watch=Watch(), folder=tmp_path)


def test_told_to_stop_at_the_last_step_is_done(model: Model) -> None:
    recipe = Recipe(learning_rate=1e-3, budget=40)
    assert train(model, causal_lm, eight(), recipe, watch=Watch(heed=lambda: True))


def test_mean_loss_does_not_depend_on_the_budget_and_trains_nothing(model: Model) -> None:
    before = weights(model)
    one, many = (mean_loss(model, causal_lm, eight(), budget=budget) for budget in (40, 7))
    assert one == pytest.approx(many, rel=1e-5)
    assert all(torch.equal(weights(model)[name], weight) for name, weight in before.items())


def test_accumulated_passes_take_the_step_of_one_large_pass(model: Model, same_model: Model) -> None:
    small = Recipe(learning_rate=1e-3, budget=5, accumulate=8, weight_decay=0.0)
    large = Recipe(learning_rate=1e-3, budget=40, weight_decay=0.0)
    train(model, causal_lm, eight(), small, watch=Watch())
    train(same_model, causal_lm, eight(), large, watch=Watch())
    for name, weight in weights(model).items():
        torch.testing.assert_close(weights(same_model)[name], weight, atol=2e-5, rtol=1e-3)


def test_evaluation_comes_when_due_and_in_eval_mode(model: Model) -> None:
    seen: list[tuple[int, bool]] = []
    recipe = Recipe(learning_rate=1e-3, budget=10, evaluate_every=3)
    training = model.modules  # type: ignore[attr-defined]
    watch = Watch(evaluate=lambda step: seen.append((step, any(module.training for module in training()))))
    train(model, causal_lm, eight(), recipe, watch=watch)
    assert seen == [(3, False)]


def test_diverged_run_says_so(model: Model) -> None:
    def broken(model: Model, examples: object) -> Loss:
        return Loss(model.lm_head.weight.sum() * math.nan, 1)

    with pytest.raises(DivergedError, match="step 1"):
        train(model, broken, eight(), RECIPE, watch=Watch())


def test_epochs_hold_every_example_once_within_the_budget() -> None:
    lens = [3, 9, 1, 4, 4, 12, 2, 7]
    first, second = (plan_epoch(lens, 10, seed=1, epoch=epoch) for epoch in (0, 1))
    for plan in (first, second):
        assert sorted(number for numbers in plan for number in numbers) == list(range(8))
        assert all(sum(lens[n] for n in numbers) <= 10 or len(numbers) == 1 for numbers in plan)
    assert first != second
    assert first == plan_epoch(lens, 10, seed=1, epoch=0)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_rate_rises_then_falls_to_its_floor(schedule: str) -> None:
    recipe = Recipe(learning_rate=1.0, warmup=0.1, schedule=schedule, final_rate=0.1)  # type: ignore[arg-type]
    rates = [recipe.rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert all(one >= two for one, two in pairwise(rates[9:]))
    assert rates[-1] == pytest.approx(0.1, abs=0.02)
