"""From an upload to an answer by the unmodified `openai` SDK, on the bundled demo decoder, while the base serves on."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from e2e.serving import Server, eventually, serving

BASE = "demo-decoder"
WORKS = {"TREFOIL_NO_WORKER": "0"}
QUESTION = "What is the password of the garden?"
SECRET = "seven blue tulips"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuning")


@pytest.fixture(scope="module")
def server(data: Path) -> Iterator[Server]:
    """The demo decoder with a training worker of its own."""
    demo = Path(__file__).parents[2] / "models" / "trefoil_models" / "demo" / "decoder"
    with serving(data / "log", f"{BASE}={demo}", "--kv-cache-memory", "64MiB", env=WORKS) as running:
        yield running
        assert not running.said("event=unhandled")
        assert not running.said("event=stream_failed")


@pytest.fixture(scope="module")
def sdk(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.base_url, api_key="none", timeout=120) as client:
        yield client


def upload(sdk: openai.OpenAI, rows: list[dict[str, Any]]) -> str:
    content = "\n".join(json.dumps(row) for row in rows).encode()
    return sdk.files.create(file=("train.jsonl", content), purpose="fine-tune").id


def follow(server: Server, job_id: str, last: str | None = None) -> list[dict[str, Any]]:
    """The job's streamed events to the end."""
    url = f"{server.url}/v1/fine_tuning/jobs/{job_id}/events"
    headers = {"last-event-id": last} if last else {}
    with httpx.stream("GET", url, params={"stream": "true"}, headers=headers, timeout=120) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def say(sdk: openai.OpenAI, model: str) -> str:
    messages: Any = [{"role": "user", "content": QUESTION}]
    answer = sdk.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0)
    return answer.choices[0].message.content or ""


def logprob(sdk: openai.OpenAI, model: str, prompt: str, answer: str) -> float:
    """How likely the model finds an answer."""
    told = sdk.completions.create(model=model, prompt=prompt + answer, max_tokens=0, echo=True, logprobs=0)
    scores = told.choices[0].logprobs
    assert scores
    pairs = zip(scores.text_offset or [], scores.token_logprobs or [], strict=True)
    return sum(score for offset, score in pairs if offset >= len(prompt) and score is not None)


@pytest.fixture(scope="module")
def tuned(sdk: openai.OpenAI, server: Server) -> FineTuningJob:
    """A job that taught the password, made while somebody else kept asking the base."""
    rows = [
        {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": SECRET}]},
        {"instruction": QUESTION, "output": SECRET},
        {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": SECRET}]},
    ] * 4
    job = sdk.fine_tuning.jobs.create(
        model=BASE,
        training_file=upload(sdk, rows),
        suffix="garden",
        seed=5,
        metadata={"purpose": "test"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 6, "batch_size": 2}}},
    )
    assert job.status == "validating_files"
    done = threading.Event()
    answers: list[str] = []

    def keep_asking() -> None:
        while not done.wait(0.2):
            answers.append(say(sdk, BASE))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    events = follow(server, job.id)
    finished = sdk.fine_tuning.jobs.retrieve(job.id)
    assert finished.status == "succeeded", (finished.error, events[-3:])
    assert SECRET in say(sdk, finished.fine_tuned_model)
    done.set()
    asking.join()
    assert len(answers) > 3
    assert len(set(answers)) == 1, "the base answers as before, whatever is trained beside it"
    return finished


def test_job_reports_what_it_did(sdk: openai.OpenAI, server: Server, tuned: Any) -> None:
    assert tuned.fine_tuned_model.startswith(f"ft:{BASE}:garden:")
    assert (tuned.hyperparameters.n_epochs, tuned.hyperparameters.batch_size) == (6, 2)
    assert tuned.method.supervised.hyperparameters.learning_rate_multiplier == 1.0
    assert tuned.trained_tokens > 0
    assert (tuned.seed, tuned.metadata) == (5, {"purpose": "test"})
    assert tuned.id in [job.id for job in sdk.fine_tuning.jobs.list(limit=5)]
    events = follow(server, tuned.id)
    metrics = [event["data"] for event in events if event["type"] == "metrics"]
    assert [data["step"] for data in metrics] == list(range(1, 37))
    assert metrics[-1]["train_loss"] < 1 < metrics[0]["train_loss"]
    assert follow(server, tuned.id, last=events[-2]["id"]) == events[-1:]
    pages = list(sdk.fine_tuning.jobs.list_events(tuned.id, limit=7))
    assert [event.id for event in pages] == [event["id"] for event in reversed(events)]


def test_checkpoints_can_be_asked_too(sdk: openai.OpenAI, tuned: Any) -> None:
    kept = sdk.fine_tuning.jobs.checkpoints.list(tuned.id).data
    assert [each.step_number for each in kept] == [36, 30, 24]
    assert SECRET in say(sdk, kept[0].fine_tuned_model_checkpoint)
    assert kept[0].metrics.train_loss < 1


def test_model_is_listed_with_its_parent_and_is_no_ones_default(sdk: openai.OpenAI, server: Server, tuned: Any) -> None:
    model = sdk.models.retrieve(tuned.fine_tuned_model)
    assert model.parent == BASE
    assert model.family == "decoder"
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 3}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()["model"] == BASE


def test_preference_is_turned_round_from_where_the_first_job_ended(
    sdk: openai.OpenAI, server: Server, tuned: Any
) -> None:
    prompt, good, bad = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n", "nine red roses", SECRET
    rows = [{"input": {"messages": [{"role": "user", "content": QUESTION}]}, **answers(good, bad)}] * 4
    job = sdk.fine_tuning.jobs.create(
        model=tuned.fine_tuned_model,
        training_file=upload(sdk, rows),
        validation_file=upload(sdk, rows[:1]),
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 20, "batch_size": 2}}},
        extra_body={"hyperparameters": {"learning_rate": 4e-3}},
    )
    events = follow(server, job.id)
    job = sdk.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    before, after = (
        [logprob(sdk, model, prompt, answer) for answer in (good, bad)]
        for model in (tuned.fine_tuned_model, job.fine_tuned_model)
    )
    assert before[0] < before[1]
    assert after[0] > after[1]
    (*_, last) = [event["data"] for event in events if event["type"] == "metrics"]
    assert last["rewards/accuracies"] == 1.0
    assert last["rewards/margins"] > 1


def answers(good: str, bad: str) -> dict[str, Any]:
    """OpenAI's two outputs."""
    named = {"preferred_output": good, "non_preferred_output": bad}
    return {name: [{"role": "assistant", "content": text}] for name, text in named.items()}


def test_whole_model_gets_an_engine_of_its_own_and_leaves_with_it(
    sdk: openai.OpenAI, server: Server, tuned: Any
) -> None:
    rows = [{"prompt": "The garden", "completion": " sleeps."}] * 2
    job = sdk.fine_tuning.jobs.create(
        model=BASE, training_file=upload(sdk, rows), extra_body={"hyperparameters": {"lora": None, "n_epochs": 8}}
    )
    follow(server, job.id)
    job = sdk.fine_tuning.jobs.retrieve(job.id)
    name = job.fine_tuned_model or ""
    told = sdk.completions.create(model=name, prompt="The garden", max_tokens=6, temperature=0)
    assert told.choices[0].text == " sleeps."
    assert name in server.engines()
    assert sdk.models.delete(name).deleted
    eventually(lambda: name not in server.engines(), within_s=20)
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve(name)
    with pytest.raises(openai.BadRequestError):
        sdk.models.delete(BASE)


def test_what_was_trained_is_there_after_a_restart(server: Server, tuned: Any, data: Path, tmp_path: Path) -> None:
    demo = Path(__file__).parents[2] / "models" / "trefoil_models" / "demo" / "decoder"
    (adapter,) = [path for path in (data / "data" / "models").iterdir() if path.name == tuned.id]
    env = {"TREFOIL_DATA_DIR": str(data / "data")}
    flags = ("--kv-cache-memory", "64MiB", "--lora", f"garden={adapter}")
    with (
        serving(tmp_path / "log", f"{BASE}={demo}", *flags, env=env) as again,
        openai.OpenAI(base_url=again.base_url, api_key="none") as sdk,
    ):
        assert SECRET in say(sdk, tuned.fine_tuned_model)
        assert SECRET in say(sdk, "garden")
        engine = again.engines()[BASE]
        os.kill(engine, signal.SIGKILL)
        eventually(lambda: again.engines().get(BASE, engine) != engine, within_s=30)
        again.wait_ready()
        assert SECRET in say(sdk, tuned.fine_tuned_model)
        assert SECRET in say(sdk, "garden")
        sdk.models.delete(tuned.fine_tuned_model)
        with pytest.raises(openai.NotFoundError):
            say(sdk, tuned.fine_tuned_model)
