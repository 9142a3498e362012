"""/v1/models: what is served, in OpenAI's shape and a few fields more; put away and brought back."""

from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from trefoil.api.deps import Models, Tuned
from trefoil.api.fleet import Fleet, ServedModel, StartRefused
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import Answer, fails
from trefoil.api.text import Text
from trefoil.api.upstream import RemoteModel
from trefoil.errors import InvalidRequest, WrongState
from trefoil.settings import ModelSource

log = structlog.get_logger()

router = APIRouter(route_class=JsonRoute)


class ModelAnswer(Answer):
    """A served model; what only a loaded engine knows is null before."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    family: Literal["decoder", "encoder", "encoder-decoder"] | None
    architecture: str | None
    tasks: list[str]
    max_model_len: int | None
    dtype: str | None
    quantization: str | None
    kv_cache_dtype: str | None
    parent: str | None


class ModelList(Answer):
    object: Literal["list"]
    data: list[ModelAnswer]


class DeletedModel(Answer):
    id: str
    object: Literal["model"]
    deleted: bool


class Named(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    model: Annotated[Text, Field(min_length=1, max_length=256)]


class Sourced(Named):
    source: Annotated[Text, Field(min_length=1)] | None = None


class UnloadedModel(Answer):
    id: str
    object: Literal["model"]
    loaded: bool


@router.post("/v1/models/load", response_model=ModelAnswer, responses=fails(404, 409))
async def load_model(body: Sourced, models: Models) -> dict[str, Any]:
    """Bring an unloaded model back, with the adapters that left with it; or, with `source`, serve another folder or Hub
    id by this name, where the server was started with --allow-loading. Answers once it can be asked.
    """
    if body.source is not None:
        return describe(await _new(body.model, body.source, models))
    try:
        return describe(await models.load(body.model))
    except StartRefused as error:
        log.error("model_not_loaded", model=body.model, why=str(error))
        raise WrongState(f"the model {body.model} cannot be started again; the log says why", param="model") from error


@router.post("/v1/models/unload", response_model=UnloadedModel, responses=fails(404))
async def unload_model(body: Named, models: Models) -> dict[str, Any]:
    """Stop a model's engine and free its memory, its adapters too; requests under way fail. Its files stay."""
    await models.unload(body.model)
    return {"id": body.model, "object": "model", "loaded": False}


@router.get("/v1/models", response_model=ModelList)
async def list_models(models: Models) -> dict[str, Any]:
    """Every served model, loading ones too."""
    served = [describe(model) for model in models.models.values()]
    return {"object": "list", "data": [*served, *map(describe_remote, models.remotes.values())]}


@router.get("/v1/models/{model_id:path}", response_model=ModelAnswer)
async def get_model(model_id: str, models: Models) -> dict[str, Any]:
    """One served model."""
    model = models.pick(model_id)
    return describe_remote(model) if isinstance(model, RemoteModel) else describe(model)


@router.delete("/v1/models/{model_id:path}", response_model=DeletedModel, responses=fails(400))
async def delete_model(model_id: str, models: Models, tuned: Tuned) -> dict[str, Any]:
    """Forget a fine-tuned model and its files."""
    if not await tuned.forget(models.find(model_id)):
        raise InvalidRequest(f"the model {model_id} was not fine-tuned here; only such can be deleted", param="model")
    return {"id": model_id, "object": "model", "deleted": True}


async def _new(name: str, source: str, models: Fleet) -> ServedModel:
    if not models.settings.loads_sources:
        raise InvalidRequest("this server was started without --allow-loading; it loads no sources", param="source")
    try:
        return await models.add_source(ModelSource(name, source))
    except StartRefused as error:
        raise InvalidRequest(str(error), param="source") from error


def describe(model: ServedModel) -> dict[str, Any]:
    """The model object; what only a loaded engine knows is null before."""
    ready = model.engine.ready
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "trefoil",
        "family": ready.kind if ready else None,
        "architecture": ready.architecture if ready else None,
        "tasks": list(model.tasks) if ready else [],
        "max_model_len": ready.max_model_len if ready else None,
        "dtype": ready.dtype if ready else None,
        "quantization": ready.quantization if ready else None,
        "kv_cache_dtype": ready.page_dtype if ready else None,
        "parent": model.parent,
    }


def describe_remote(model: RemoteModel) -> dict[str, Any]:
    """The same of a model that another server answers for: what that one keeps to itself is null."""
    return {
        **dict.fromkeys(ModelAnswer.model_fields),
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "trefoil",
        "tasks": list(model.tasks) if model.about else [],
        "max_model_len": model.max_model_len,
    }
