"""/v1/fine_tuning/jobs: make training jobs, follow them, stop them. The work itself is a worker's."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from trefoil.api.deps import Models, Stored, Tuned
from trefoil.api.fine_tuned import FineTuned
from trefoil.api.fleet import Fleet, ServedModel
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import Answer, fails, says
from trefoil.api.sse import DONE, EventStream, event, json_response
from trefoil.api.text import Text
from trefoil.errors import FileNotFound, InvalidRequest, ModelNotFound, NotImplementedHere, WrongTask
from trefoil.hyperparameters import METHODS, Sampled, read_hyperparameters
from trefoil.store.catalog import StoredModel
from trefoil.store.files import Page
from trefoil.store.jobs import Event, Job, Spec, State, Want
from trefoil.store.store import Store

router = APIRouter(route_class=JsonRoute)

MOST_SEED = 2**31 - 1
POLL_S = 0.3
HEARTBEAT_S = 15.0
KINDS = {
    "supervised": ("decoder", "encoder-decoder"),
    "dpo": ("decoder", "encoder-decoder"),
    "ppo": ("decoder",),
    "grpo": ("decoder",),
    "pretrain": ("decoder", "encoder", "encoder-decoder"),
    "reward": ("decoder",),
    "classification": ("decoder", "encoder"),
    "token_classification": ("encoder",),
    "question_answering": ("encoder",),
}
"""Which kinds of models each method teaches."""
OF_GENERATION = frozenset({"supervised", "dpo", "ppo", "grpo"})
OBJECTIVES_OF_KINDS = {
    "decoder": ("clm",),
    "encoder": ("mlm", "mlm+nsp", "mlm+sop"),
    "encoder-decoder": ("span_corruption", "text_infilling"),
}
"""How each kind learns from plain text, the usual way first; of two ways that for which the tokenizer has the marks."""
PAIRED = {"mlm+nsp": "bert", "mlm+sop": "albert"}
"""The families that have a head for pairs of sentences."""
EVENT_PREFIX = "ftevent-"

Limit = Annotated[int, Query(ge=1, le=1000)]


class Method(BaseModel):
    """`type`, and under the type's own name what it takes."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: str


class CreateJob(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: Annotated[Text, Field(min_length=1, max_length=64, pattern=r"^[^:/\s]+$")] | None = None
    seed: Annotated[int, Field(ge=0, le=MOST_SEED)] | None = None
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = None
    method: Method | None = None
    hyperparameters: dict[str, Any] | None = None
    integrations: list[Any] | None = None


class JobFailure(Answer):
    code: str
    message: str
    param: str | None


class JobAnswer(Answer):
    """OpenAI's job; its hyperparameters are those in force, "auto" until the files are read."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    finished_at: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    result_files: list[str]
    status: State
    training_file: str
    validation_file: str | None
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    trained_tokens: int | None
    error: JobFailure | None
    seed: int
    suffix: str | None
    metadata: dict[str, str] | None
    integrations: list[Any]
    estimated_finish: None


class JobList(Answer):
    object: Literal["list"]
    data: list[JobAnswer]
    has_more: bool


class EventAnswer(Answer):
    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: str
    type: str
    message: str
    data: dict[str, Any]


class EventList(Answer):
    object: Literal["list"]
    data: list[EventAnswer]
    has_more: bool


class CheckpointAnswer(Answer):
    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, Any]


class CheckpointList(Answer):
    object: Literal["list"]
    data: list[CheckpointAnswer]
    has_more: bool
    first_id: str | None
    last_id: str | None


@router.post("/v1/fine_tuning/jobs", response_model=JobAnswer, responses=fails(404, 503))
async def create(body: CreateJob, models: Models, store: Stored) -> dict[str, Any]:
    """Queue a training job."""
    if body.integrations:
        raise NotImplementedHere("integrations")
    if body.metadata is not None and len(body.metadata) > 16:
        raise InvalidRequest("metadata has more than 16 keys", param="metadata")
    method, given = read_method(body)
    base = models.find(body.model)
    given = fitted(method, given, base)
    judge = judge_of(body, method, given, models)
    spec = Spec(
        model=base.name,
        base=str(base.folder),
        adapter=None if base.adapter is None else str(base.adapter),
        judge=None if judge is None else str(judge.folder),
        method=method,
        training_file=body.training_file,
        validation_file=body.validation_file,
        hyperparameters=given,
        seed=random.randrange(MOST_SEED) if body.seed is None else body.seed,
        suffix=body.suffix,
        metadata=body.metadata,
    )
    return describe(await run_in_threadpool(_create, store, spec))


@router.get("/v1/fine_tuning/jobs", response_model=JobList, responses=fails(404))
def list_jobs(request: Request, store: Stored, limit: Limit = 20, after: str | None = None) -> dict[str, Any]:
    """Jobs, newest first; `metadata[key]=value` picks those that have it."""
    wanted = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    jobs, has_more = store.jobs.list(Page(limit, after), metadata=wanted)
    return {"object": "list", "data": [describe(job) for job in jobs], "has_more": has_more}


@router.get("/v1/fine_tuning/jobs/{job_id}", response_model=JobAnswer)
async def get_job(job_id: str, tuned: Tuned, store: Stored) -> dict[str, Any]:
    """One job. Once it says succeeded, its model can be asked."""
    job = await run_in_threadpool(store.jobs.get, job_id)
    if job.state == State.SUCCEEDED:
        await tuned.catch_up()
    return describe(job)


@router.post("/v1/fine_tuning/jobs/{job_id}/cancel", response_model=JobAnswer, responses=fails(409))
def cancel(job_id: str, store: Stored) -> dict[str, Any]:
    """End a job, at its next step where it runs."""
    return describe(store.jobs.ask(job_id, Want.CANCEL))


@router.post("/v1/fine_tuning/jobs/{job_id}/pause", response_model=JobAnswer, responses=fails(409))
def pause(job_id: str, store: Stored) -> dict[str, Any]:
    """Stop a job where it is, to go on later."""
    return describe(store.jobs.ask(job_id, Want.PAUSE))


@router.post("/v1/fine_tuning/jobs/{job_id}/resume", response_model=JobAnswer, responses=fails(409))
def resume(job_id: str, store: Stored) -> dict[str, Any]:
    """Let a paused job go on, or a failed one try again from its last saved state."""
    return describe(store.jobs.ask(job_id, Want.RUN))


@router.get(
    "/v1/fine_tuning/jobs/{job_id}/events",
    responses=says(EventList, events="With `stream`: the same events, oldest first, then `[DONE]`."),
)
async def list_events(
    job_id: str,
    tuned: Tuned,
    store: Stored,
    limit: Limit = 20,
    after: str | None = None,
    stream: bool = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """What happened, newest first; streamed: oldest first, until the job is over."""
    if stream:
        start = _event_number(last_event_id or after, "Last-Event-ID" if last_event_id else "after") or 0
        await run_in_threadpool(store.jobs.get, job_id)
        return EventStream(_told(tuned, store, job_id, start), lambda: None)
    before = _event_number(after, "after")
    events, has_more = await run_in_threadpool(store.jobs.latest_events, job_id, before=before, limit=limit)
    return json_response({"object": "list", "data": [describe_event(event) for event in events], "has_more": has_more})


@router.get("/v1/fine_tuning/jobs/{job_id}/checkpoints", response_model=CheckpointList)
async def list_checkpoints(
    job_id: str, tuned: Tuned, store: Stored, limit: Limit = 10, after: str | None = None
) -> dict[str, Any]:
    """The models a job was on its way, latest first; each can be asked."""
    await run_in_threadpool(store.jobs.get, job_id)
    await tuned.catch_up()
    found = [describe_checkpoint(model) for model in await run_in_threadpool(store.catalog.checkpoints, job_id)]
    if after is not None:
        ids = [checkpoint["id"] for checkpoint in found]
        if after not in ids:
            raise InvalidRequest(f"the job has no checkpoint {after[:80]!r}", param="after")
        found = found[ids.index(after) + 1 :]
    data = found[:limit]
    return {
        "object": "list",
        "data": data,
        "has_more": len(found) > limit,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def read_method(body: CreateJob) -> tuple[str, dict[str, Any]]:
    """The method and its hyperparameters as given, nested or flat, all of them checked."""
    method = body.method.type if body.method else "supervised"
    if method not in METHODS:
        raise InvalidRequest(
            f"method.type {method[:40]!r} is not known; known are {', '.join(METHODS)}", param="method.type"
        )
    flat = body.hyperparameters or {}
    if body.method is None or not body.method.model_extra:
        read_hyperparameters(method, flat, path="hyperparameters")
        return method, flat
    nested = _nested(body.method, method)
    both = nested.keys() & flat.keys()
    if both:
        raise InvalidRequest(f"{min(both)} is given twice, nested and flat", param=f"hyperparameters.{min(both)}")
    read_hyperparameters(method, flat, path="hyperparameters")
    read_hyperparameters(method, nested, path=f"method.{method}.hyperparameters")
    return method, {**flat, **nested}


def fitted(method: str, given: dict[str, Any], base: ServedModel) -> dict[str, Any]:
    """The hyperparameters with what follows from the base model. Raises WrongTask where it cannot be taught so."""
    kind = base.about.kind
    takes = KINDS[method]
    if kind not in takes or (method in OF_GENERATION and "text-generation" not in base.tasks):
        wanted = " or ".join(takes) + (" models that generate" if method in OF_GENERATION else " models")
        raise WrongTask(f"the method {method} teaches {wanted}; {base.name} is none of them", param="model")
    if method != "pretrain":
        return given
    objective = given.get("objective", "auto")
    family = base.source.model_type
    if objective == "auto":
        ways = OBJECTIVES_OF_KINDS[kind]
        objective = next((way for way in ways if lacking(way, base) is None), ways[0])
    needed = PAIRED.get(objective, family)
    if objective not in OBJECTIVES_OF_KINDS[kind] or needed != family:
        raise WrongTask(f"the objective {objective} does not suit {base.name} ({kind}, {family})", param="model")
    lacks = lacking(objective, base)
    if lacks is not None:
        raise WrongTask(
            f"the objective {objective} needs {lacks}, which the tokenizer of {base.name} lacks", param="model"
        )
    if kind == "encoder" and given.get("lora") is not None:
        raise InvalidRequest("lora must be null for an encoder, which serves no adapters", param="lora")
    return {**given, "objective": objective, **({"lora": None} if kind == "encoder" else {})}


def lacking(objective: str, base: ServedModel) -> str | None:
    """What hides text in this objective, where the model's tokenizer has no such thing."""
    if objective == "span_corruption":
        return "sentinels (<extra_id_0> and so on)" if len(base.tokenizer.sentinel_ids) < 2 else None
    return "a mask token" if objective != "clm" and base.tokenizer.mask_id is None else None


def judge_of(body: CreateJob, method: str, given: dict[str, Any], models: Fleet) -> ServedModel | None:
    """The reward model of a method that needs one. Raises InvalidRequest, ModelNotFound, WrongTask."""
    if not issubclass(METHODS[method], Sampled):
        return None
    name, label = given.get("reward_model"), given.get("reward_label")
    where = _written(body, method, "reward_model")
    if name is None:
        raise InvalidRequest(f"the method {method} needs {where}: a served model that scores answers", param=where)
    try:
        judge = models.find(name)
    except ModelNotFound as error:
        raise ModelNotFound(error.message, param=where) from None
    if "text-classification" not in judge.tasks:
        raise WrongTask(f"{name} scores no texts; a reward model or a classifier does", param=where)
    if label not in judge.labels and (label is not None or len(judge.labels) > 1):
        known = ", ".join(judge.labels[:20])
        where = _written(body, method, "reward_label")
        raise InvalidRequest(f"{where} must be a label of {name}: one of {known}", param=where)
    return judge


def _written(body: CreateJob, method: str, name: str) -> str:
    """A hyperparameter's name as the client wrote it, or would have."""
    return (
        f"hyperparameters.{name}" if name in (body.hyperparameters or {}) else f"method.{method}.hyperparameters.{name}"
    )


def _nested(given: Method, method: str) -> dict[str, Any]:
    extra = dict(given.model_extra or {})
    own = extra.pop(method, None) or {}
    beside = {"objective": extra.pop("objective")} if method == "pretrain" and "objective" in extra else {}
    read_hyperparameters(method, beside, path="method")  # named as it was written
    extra = {name: value for name, value in extra.items() if value is not None}
    if extra:
        raise InvalidRequest(f"a method of type {method} has no {min(extra)!r}", param=f"method.{min(extra)}")
    if not isinstance(own, dict) or not isinstance(own.get("hyperparameters") or {}, dict):
        raise InvalidRequest(f"method.{method} must be an object with hyperparameters", param=f"method.{method}")
    unknown = own.keys() - {"hyperparameters"}
    if unknown:
        raise InvalidRequest(f"method.{method} has no {min(unknown)!r}", param=f"method.{method}.{min(unknown)}")
    return {**beside, **(own.get("hyperparameters") or {})}


def describe(job: Job) -> dict[str, Any]:
    """OpenAI's job object; its hyperparameters are those in force, "auto" until the files are read."""
    spec, result = job.spec, job.result or {}
    known = spec.resolved or {"n_epochs": "auto", "batch_size": "auto", **spec.hyperparameters}
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created_at),
        "finished_at": None if job.finished_at is None else int(job.finished_at),
        "model": spec.model,
        "fine_tuned_model": result.get("fine_tuned_model"),
        "organization_id": "trefoil",
        "result_files": [],
        "status": job.state,
        "training_file": spec.training_file,
        "validation_file": spec.validation_file,
        "hyperparameters": known,
        "method": {"type": spec.method, spec.method: {"hyperparameters": known}},
        "trained_tokens": result.get("trained_tokens"),
        "error": job.error,
        "seed": spec.seed,
        "suffix": spec.suffix,
        "metadata": spec.metadata,
        "integrations": [],
        "estimated_finish": None,
    }


def describe_event(event: Event) -> dict[str, Any]:
    """OpenAI's event object."""
    return {
        "id": f"{EVENT_PREFIX}{event.id}",
        "object": "fine_tuning.job.event",
        "created_at": int(event.created_at),
        "level": event.level,
        "type": event.type,
        "message": event.message,
        "data": event.data or {},
    }


def describe_checkpoint(model: StoredModel) -> dict[str, Any]:
    """OpenAI's checkpoint object."""
    return {
        "id": f"ftckpt-{(model.job_id or '').removeprefix('ftjob-')}-{model.step}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(model.created_at),
        "fine_tuned_model_checkpoint": model.name,
        "fine_tuning_job_id": model.job_id,
        "step_number": model.step,
        "metrics": model.metrics or {},
    }


def _create(store: Store, spec: Spec) -> Job:
    for param in ("training_file", "validation_file"):
        file_id = getattr(spec, param)
        if file_id is not None:
            try:
                store.files.get(file_id)
            except FileNotFound:
                raise FileNotFound(file_id, param=param) from None
    return store.jobs.create(spec)


async def _told(tuned: FineTuned, store: Store, job_id: str, last: int) -> AsyncIterator[bytes]:
    """Events as they happen; a comment now and then keeps the connection. Ends with the job."""
    quiet_s = 0.0
    while True:
        job = await run_in_threadpool(store.jobs.get, job_id)  # first, so that no event of the end is missed
        events = await run_in_threadpool(store.jobs.events, job_id, after=last)
        if job.state.is_over:
            await tuned.catch_up()
        for each in events:
            yield f"id: {EVENT_PREFIX}{each.id}\n".encode() + event(describe_event(each))
        last = events[-1].id if events else last
        if job.state.is_over:
            yield DONE
            return
        quiet_s = 0.0 if events else quiet_s + POLL_S
        if quiet_s > HEARTBEAT_S:
            quiet_s = 0.0
            yield b": still there\n\n"
        await asyncio.sleep(POLL_S)


def _event_number(event_id: str | None, param: str) -> int | None:
    if event_id is None:
        return None
    number = event_id.removeprefix(EVENT_PREFIX)
    if not number.isdecimal() or len(number) > 18:
        raise InvalidRequest(f"{event_id[:80]!r} is no event's id", param=param)
    return int(number)
