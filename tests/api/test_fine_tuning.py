"""Jobs as clients make, list and stop them: OpenAI's shapes, and a wrong field named as it was written.

No worker runs beside this server: what waits, waits.
"""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from api.test_errors import refused

GOOD = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}\n'
JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def file_id(client: openai.OpenAI) -> str:
    return client.files.create(file=("train.jsonl", GOOD), purpose="fine-tune").id


@pytest.fixture
def job(client: openai.OpenAI, file_id: str) -> Iterator[Any]:
    made = client.fine_tuning.jobs.create(
        model="a", training_file=file_id, suffix="mine", seed=3, metadata={"owner": "me"}
    )
    yield made
    if client.fine_tuning.jobs.retrieve(made.id).status != "cancelled":
        client.fine_tuning.jobs.cancel(made.id)


def test_a_new_job_waits_with_all_it_was_given(client: openai.OpenAI, job: Any, file_id: str) -> None:
    assert (job.object, job.status, job.model, job.training_file) == (
        "fine_tuning.job",
        "validating_files",
        "a",
        file_id,
    )
    assert (job.seed, job.suffix, job.metadata) == (3, "mine", {"owner": "me"})
    assert (job.fine_tuned_model, job.finished_at, job.error, job.trained_tokens) == (None, None, None, None)
    assert job.hyperparameters.n_epochs == "auto"
    assert job.method.type == "supervised"
    assert client.fine_tuning.jobs.retrieve(job.id) == job
    assert client.fine_tuning.jobs.list(limit=1).data == [job]
    assert client.fine_tuning.jobs.list(metadata={"owner": "you"}).data == []
    events = client.fine_tuning.jobs.list_events(job.id).data
    assert [event.message.split(":")[0] for event in events] == ["Validating training file", "Created fine-tuning job"]
    assert client.fine_tuning.jobs.checkpoints.list(job.id).data == []


def test_a_waiting_job_is_paused_resumed_and_cancelled(client: openai.OpenAI, job: Any) -> None:
    jobs = client.fine_tuning.jobs
    assert jobs.pause(job.id).status == "paused"
    assert jobs.resume(job.id).status == "validating_files"
    with pytest.raises(openai.ConflictError) as raised:
        jobs.resume(job.id)
    assert raised.value.code == "wrong_state"
    assert jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        jobs.cancel(job.id)


def test_a_file_that_a_job_needs_stays(client: openai.OpenAI, job: Any, file_id: str) -> None:
    with pytest.raises(openai.ConflictError):
        client.files.delete(file_id)
    client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(file_id).deleted


def test_events_of_a_job_that_is_over_end_the_stream(http: httpx.Client, client: openai.OpenAI, job: Any) -> None:
    client.fine_tuning.jobs.cancel(job.id)
    text = http.get(f"{JOBS}/{job.id}/events", params={"stream": "true"}).text
    assert text.count("data: {") == 3
    assert text.endswith("data: [DONE]\n\n")
    assert "id: ftevent-" in text


def nested(method: str, **given: Any) -> dict[str, Any]:
    return {"method": {"type": method, method: {"hyperparameters": given}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"training_file": 5}, "training_file"),
        ({"suffix": "a" * 65}, "suffix"),
        ({"suffix": "a:b"}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"integrations": [{"type": "wandb"}]}, "integrations"),
        ({"method": {"type": "magic"}}, "method.type"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised"),
        ({"method": {"type": "dpo", "dpo": {"beta": 1}}}, "method.dpo.beta"),
        ({"method": {"type": "pretrain", "objective": "magic"}}, "method.objective"),
        ({"method": {"type": "pretrain", "objective": "mlm"}}, "model"),
        ({"method": {"type": "question_answering"}}, "model"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": "some"}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"speed": 1}}, "hyperparameters.speed"),
        (nested("supervised", n_epochs=0), "method.supervised.hyperparameters.n_epochs"),
        (nested("supervised", beta=0.1), "method.supervised.hyperparameters.beta"),
        (nested("supervised", lora={"rank": 4}), "method.supervised.hyperparameters.lora"),
        (nested("supervised", lora={"r": 0}), "method.supervised.hyperparameters.lora.r"),
        (nested("dpo", beta=-1), "method.dpo.hyperparameters.beta"),
        (nested("dpo", loss_type="magic"), "method.dpo.hyperparameters.loss_type"),
        (nested("dpo", batch_size=1.5), "method.dpo.hyperparameters.batch_size"),
        (nested("ppo"), "method.ppo.hyperparameters.reward_model"),
        (nested("grpo", num_generations=1), "method.grpo.hyperparameters.num_generations"),
        (nested("grpo", value_coef=1), "method.grpo.hyperparameters.value_coef"),
        (nested("grpo", reward_model="a"), "method.grpo.hyperparameters.reward_model"),
        ({"method": {"type": "ppo"}, "hyperparameters": {"reward_model": "a"}}, "hyperparameters.reward_model"),
        (nested("ppo", reward_model=7), "method.ppo.hyperparameters.reward_model"),
        (nested("ppo", reward_model="a", lora={"dropout": 0.1}), "method.ppo.hyperparameters.lora.dropout"),
        (nested("ppo", reward_model="a", clip_range=1), "method.ppo.hyperparameters.clip_range"),
        ({**nested("dpo", beta=0.1), "hyperparameters": {"beta": 0.2}}, "hyperparameters.beta"),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_a_wrong_field_is_named(http: httpx.Client, file_id: str, fields: dict[str, Any], param: str) -> None:
    body = {"model": "a", "training_file": file_id, **fields}
    assert refused(http.post(JOBS, json=body))["param"] == param


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": "none"}, "model", "model_not_found"),
        ({"training_file": "file-none"}, "training_file", "file_not_found"),
        ({"validation_file": "file-none"}, "validation_file", "file_not_found"),
        (nested("ppo", reward_model="none"), "method.ppo.hyperparameters.reward_model", "model_not_found"),
    ],
)
def test_what_is_not_there_is_a_404(
    http: httpx.Client, file_id: str, fields: dict[str, Any], param: str, code: str
) -> None:
    error = refused(http.post(JOBS, json={"model": "a", "training_file": file_id, **fields}), 404)
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize("path", ["", "/events", "/events?stream=true", "/checkpoints"])
def test_an_unknown_job_is_a_404(http: httpx.Client, path: str) -> None:
    assert refused(http.get(f"{JOBS}/ftjob-none{path}"), 404)["code"] == "job_not_found"


def test_only_models_trained_here_can_be_deleted(http: httpx.Client) -> None:
    assert refused(http.delete("/v1/models/a"))["param"] == "model"
    assert refused(http.delete("/v1/models/ft:none"), 404)["code"] == "model_not_found"


def test_no_source_is_loaded_where_that_was_not_allowed(http: httpx.Client) -> None:
    assert refused(http.post("/v1/models/load", json={"model": "c", "source": "/etc"}))["param"] == "source"
