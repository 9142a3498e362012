"""Jobs that teach heads and plain text over HTTP: upload, job, events, and the result answering its task at once."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import tiny
import tiny_encoders
from e2e.serving import serving

pytestmark = pytest.mark.slow

GOOD, BAD = "the cat sat on the mat", "one two three"
QUICK = {"n_epochs": 30, "batch_size": 4, "learning_rate": 1e-2, "save_steps": 1000}
ANSWER = {"text": ["the mat"], "answer_start": [15]}
JOBS: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]]]] = {
    "reward": ("llama", {}, [{"prompt": "say", "chosen": " one two", "rejected": " eight nine"}] * 4),
    "classification": ("bert", {}, [{"text": GOOD, "label": "yes"}, {"text": BAD, "label": "no"}] * 2),
    "token_classification": ("bert", {}, [{"tokens": ["the", "cat", "sat"], "tags": ["O", "B-ANIMAL", "O"]}] * 4),
    "question_answering": ("bert", {}, [{"question": "dog", "context": GOOD, "answers": ANSWER}] * 4),
    "mlm": ("bert", {"objective": "mlm", "n_epochs": 60}, [{"text": GOOD}] * 4),
    "clm": ("llama", {"objective": "clm", "lora": None}, [{"text": GOOD}] * 4),
}
"""Model, what is asked besides, and rows, by method; plain text by objective."""


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server that trains, with a decoder and an encoder."""
    folder = tmp_path_factory.mktemp("methods")
    llama = tiny.checkpoint(folder / "llama", "llama", std=0.1)
    bert = tiny_encoders.checkpoint(folder / "bert", "bert", "ForMaskedLM")
    flags = (f"llama={llama}", f"bert={bert}", "--kv-cache-memory", "16MiB")
    with (
        serving(folder / "log", *flags, env={"TREFOIL_NO_WORKER": "0"}) as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        yield client
        assert not server.said("event=unhandled")


@pytest.fixture(scope="module")
def jobs(http: httpx.Client) -> dict[str, str]:
    """All jobs, started at once; their ids."""
    return {name: create(http, name, rows, **given) for name, (_, given, rows) in JOBS.items()}


def create(http: httpx.Client, name: str, rows: list[dict[str, Any]], **given: Any) -> str:
    method = name if name in ("reward", "classification", "token_classification", "question_answering") else "pretrain"
    content = "\n".join(json.dumps(row) for row in rows).encode()
    uploaded = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", content)}).json()
    body = {
        "model": JOBS[name][0],
        "training_file": uploaded["id"],
        "method": {"type": method, method: {"hyperparameters": {**QUICK, **given}}},
        "seed": 3,
    }
    made = http.post("/v1/fine_tuning/jobs", json=body)
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


def finished(http: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job after its streamed events have ended, whose losses fell."""
    with http.stream("GET", f"/v1/fine_tuning/jobs/{job_id}/events", params={"stream": "true"}) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    job: dict[str, Any] = http.get(f"/v1/fine_tuning/jobs/{job_id}").json()
    assert job["status"] == "succeeded", job["error"]
    losses = [event["data"]["train_loss"] for event in events if "train_loss" in event["data"]]
    assert sum(losses[-5:]) < sum(losses[:5])
    return job


def asked(http: httpx.Client, task: str, job: dict[str, Any], inputs: Any) -> Any:
    answer = http.post(f"/v1/tasks/{task}", json={"inputs": inputs, "model": job["fine_tuned_model"]})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_reward_model_scores(http: httpx.Client, jobs: dict[str, str]) -> None:
    job = finished(http, jobs["reward"])
    good, bad = (
        asked(http, "reward", job, {"prompt": "say", "response": said}) for said in (" one two", " eight nine")
    )
    assert good["score"] > bad["score"] + 1


def test_classes_are_told(http: httpx.Client, jobs: dict[str, str]) -> None:
    job = finished(http, jobs["classification"])
    found = asked(http, "text-classification", job, [GOOD, BAD])
    assert [labels[0]["label"] for labels in found] == ["yes", "no"]


def test_words_are_tagged(http: httpx.Client, jobs: dict[str, str]) -> None:
    job = finished(http, jobs["token_classification"])
    (found,) = asked(http, "token-classification", job, "the cat sat")
    assert (found["entity"], found["start"], found["end"]) == ("B-ANIMAL", 4, 7)


def test_answers_are_found(http: httpx.Client, jobs: dict[str, str]) -> None:
    job = finished(http, jobs["question_answering"])
    assert asked(http, "question-answering", job, {"question": "dog", "context": GOOD})["answer"] == "the mat"


def test_masked_words_are_filled(http: httpx.Client, jobs: dict[str, str]) -> None:
    job = finished(http, jobs["mlm"])
    body = {"inputs": GOOD.replace("cat", "[MASK]"), "parameters": {"targets": ["cat"]}}
    before, after = (
        http.post("/v1/tasks/fill-mask", json={**body, "model": model}).json()[0]["score"]
        for model in ("bert", job["fine_tuned_model"])
    )
    assert after > before


def test_text_is_less_of_a_surprise(http: httpx.Client, jobs: dict[str, str]) -> None:
    job = finished(http, jobs["clm"])
    before, after = (asked(http, "perplexity", model, GOOD) for model in ({"fine_tuned_model": "llama"}, job))
    assert after["perplexity"] < 0.1 * before["perplexity"]


@pytest.mark.parametrize(
    ("model", "method", "param"),
    [
        ("llama", {"type": "token_classification"}, "model"),
        ("bert", {"type": "reward"}, "model"),
        ("bert", {"type": "pretrain", "objective": "clm"}, "model"),
        ("bert", {"type": "classify"}, "method.type"),
        (
            "bert",
            {"type": "classification", "classification": {"hyperparameters": {"labels": []}}},
            "method.classification.hyperparameters.labels",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_queued(
    http: httpx.Client, model: str, method: dict[str, Any], param: str
) -> None:
    answer = http.post("/v1/fine_tuning/jobs", json={"model": model, "training_file": "file-x", "method": method})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_a_bad_line_is_named_to_who_asks_for_the_job(http: httpx.Client) -> None:
    job_id = create(http, "classification", [{"text": GOOD, "label": "yes"}, {"text": BAD}])
    with http.stream("GET", f"/v1/fine_tuning/jobs/{job_id}/events", params={"stream": "true"}) as answer:
        answer.read()
    job = http.get(f"/v1/fine_tuning/jobs/{job_id}").json()
    assert (job["status"], job["error"]["code"]) == ("failed", "invalid_training_file")
    assert "rows.jsonl, line 2: it has no label" in job["error"]["message"]
