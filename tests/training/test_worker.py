"""Jobs through a real worker and real trainers: they end right, are stopped, and survive trainers that die."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from e2e.serving import children, eventually, title
from training.shop import CHATS, Shop, open_shop
from trefoil.store.jobs import Claim, State, Want


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("base"), "llama", std=0.1)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model."""
    folder = tmp_path_factory.mktemp("judge")
    return tiny.checkpoint(folder, "llama", std=0.1, head="ForSequenceClassification", num_labels=1)


@pytest.fixture(scope="module")
def shop(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One worker for the module, on SQLite."""
    data = tmp_path_factory.mktemp("shop")
    with open_shop(f"sqlite:///{data}/trefoil.db", data, base) as opened:
        yield opened


def test_job_tells_its_numbers_and_ends_with_a_model(shop: Shop) -> None:
    job = shop.wait(shop.submit(CHATS * 5, batch_size="auto", n_epochs="auto", validation=CHATS[:2]))
    assert job.state == State.SUCCEEDED, job.error
    resolved = job.spec.resolved
    assert (resolved["n_epochs"], resolved["batch_size"], resolved["learning_rate_multiplier"]) == (3, 1, 1.0)
    assert shop.steps(job) == list(range(1, 121))
    first, *_, last = [event.data for event in shop.store.jobs.events(job.id) if event.type == "metrics"]
    assert last["train_loss"] < 0.7 * first["train_loss"]
    assert {"learning_rate", "grad_norm", "tokens_per_second", "train_mean_token_accuracy"} <= first.keys()
    kept = shop.store.catalog.checkpoints(job.id)
    assert [model.step for model in kept] == [120, 80, 40]
    assert kept[0].metrics["full_valid_loss"] < 4
    assert kept[0].name == f"{job.result['fine_tuned_model']}:ckpt-step-120"
    eventually(lambda: not (shop.data / "jobs" / job.id).exists(), within_s=10)


@pytest.mark.parametrize(
    ("rows", "given", "cause"),
    [
        ([*CHATS, {"messages": []}], {}, "train.jsonl, line 9: 'messages' is an empty list"),
        ([CHATS[0], {"messages": CHATS[1]["messages"][:1]}], {}, "train.jsonl, line 2: nothing to learn"),
        ([CHATS[0]], {"max_length": 4}, "train.jsonl, line 1: .* the limit is 4"),
        ([{"text": "a"}], {}, "train.jsonl, line 1: .*no answer"),
        ([CHATS[0]], {"validation": [{"text": "a"}]}, "train.jsonl, line 1: .*no answer"),
        ([], {}, "train.jsonl is empty"),
    ],
    ids=["row", "masked", "long", "format", "validation", "empty"],
)
def test_bad_line_fails_the_job_by_name(shop: Shop, rows: list[Any], given: dict[str, Any], cause: str) -> None:
    job = shop.wait(shop.submit(rows, **given))
    assert job.state == State.FAILED
    assert job.error["code"] == "invalid_training_file"
    assert re.search(cause, job.error["message"]), job.error
    assert job.attempt == 1


def test_unknown_target_fails_the_job_at_once(shop: Shop) -> None:
    job = shop.wait(shop.submit(lora={"target_modules": ["wq"]}))
    assert (job.state, job.error["code"]) == (State.FAILED, "invalid_job")
    assert "'wq' is no linear layer" in job.error["message"]


def test_cancelled_and_paused_jobs_stop_and_a_resumed_one_ends_the_same(shop: Shop) -> None:
    job = shop.submit(n_epochs=400)
    eventually(lambda: shop.steps(job), within_s=60)
    shop.store.jobs.ask(job.id, Want.CANCEL)
    num_told = len(shop.steps(job))
    assert shop.wait(job, within_s=20).state == State.CANCELLED
    assert num_told <= len(shop.steps(job)) < 1600
    paused = shop.submit()
    whole = shop.submit()
    shop.store.jobs.ask(paused.id, Want.PAUSE)
    shop.wait(whole)
    assert shop.wait(paused, State.PAUSED).state == State.PAUSED
    shop.store.jobs.ask(paused.id, Want.RUN)
    assert shop.wait(paused).state == State.SUCCEEDED
    assert shop.weights(paused) == shop.weights(whole)


def test_worker_told_to_leave_gives_its_job_back(base: Path, tmp_path: Path) -> None:
    with open_shop(f"sqlite:///{tmp_path}/trefoil.db", tmp_path, base) as shop:
        job = shop.submit(n_epochs=400)
        eventually(lambda: shop.steps(job), within_s=60)
        shop.workers[0].send_signal(signal.SIGTERM)
        assert shop.workers[0].wait(timeout=30) == 0
        assert shop.state(job) == State.QUEUED
        assert (tmp_path / "jobs" / job.id / "training_state.safetensors").exists()


def test_trainer_that_dies_goes_on_from_its_checkpoint(shop: Shop) -> None:
    whole, broken = shop.submit(n_epochs=10), shop.submit(n_epochs=10)
    eventually(lambda: shop.steps(broken), within_s=60)
    (trainer,) = [pid for pid in children(shop.workers[0].pid) if title(pid) == f"trefoil trainer {broken.id}"]
    os.kill(trainer, signal.SIGKILL)
    assert shop.wait(broken).state == State.SUCCEEDED
    assert "killed by signal 9" in " ".join(event.message for event in shop.store.jobs.events(broken.id))
    assert shop.weights(broken) == shop.weights(whole)


def test_failed_job_that_is_resumed_goes_on_from_its_checkpoint(shop: Shop) -> None:
    whole, broken = shop.submit(n_epochs=24), shop.submit(n_epochs=24)
    shop.reach(broken, 1)
    attempt = shop.store.jobs.get(broken.id).attempt
    assert shop.store.jobs.fail(Claim(broken.id, attempt), "disk_full", "no space is left")
    assert shop.state(broken) == State.FAILED
    again = shop.store.jobs.ask(broken.id, Want.RUN)
    assert (again.state, again.error, again.finished_at) == (State.QUEUED, None, None)
    assert shop.wait(broken).state == State.SUCCEEDED
    assert shop.weights(broken) == shop.weights(whole)
    assert shop.steps(broken) == list(range(1, 97))


@pytest.mark.parametrize(("method", "lora"), [("ppo", {"r": 4}), ("grpo", None)])
def test_policy_whose_trainer_dies_ends_as_if_it_had_not(
    shop: Shop, judge: Path, method: str, lora: dict[str, int] | None
) -> None:
    prompts = [{"prompt": f"one {n}"} for n in range(6)]
    given = {"judge": judge, "lora": lora, "n_epochs": 16, "max_completion_tokens": 6, "num_updates": 2}
    whole, broken = (shop.submit(prompts, method, **given) for _ in range(2))
    shop.reach(broken, 1)
    (trainer,) = [pid for pid in children(shop.workers[0].pid) if title(pid) == f"trefoil trainer {broken.id}"]
    os.kill(trainer, signal.SIGKILL)
    assert shop.wait(broken).state == shop.wait(whole).state == State.SUCCEEDED
    assert "killed by signal 9" in " ".join(event.message for event in shop.store.jobs.events(broken.id))
    assert shop.weights(broken) == shop.weights(whole)
    assert shop.steps(broken) == list(range(1, 49))
    first, *_ = [event.data for event in shop.store.jobs.events(whole.id) if event.type == "metrics"]
    assert {"reward", "kl", "entropy", "policy_loss", "clip_fraction"} <= first.keys()
    assert ("value_loss" in first) == (method == "ppo")
