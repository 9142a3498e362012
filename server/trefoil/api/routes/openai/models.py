"""GET /v1/models and /v1/models/{id}: what is served, in OpenAI's shape and a few fields more."""

from typing import Any, Literal

from fastapi import APIRouter

from trefoil.api.deps import Models, Tuned
from trefoil.api.fleet import ServedModel
from trefoil.api.reference import Answer, fails
from trefoil.errors import InvalidRequest

router = APIRouter()


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
    parent: str | None


class ModelList(Answer):
    object: Literal["list"]
    data: list[ModelAnswer]


class DeletedModel(Answer):
    id: str
    object: Literal["model"]
    deleted: bool


@router.get("/v1/models", response_model=ModelList)
async def list_models(models: Models) -> dict[str, Any]:
    """Every served model, loading ones too."""
    return {"object": "list", "data": [describe(model) for model in models.models.values()]}


@router.get("/v1/models/{model_id:path}", response_model=ModelAnswer)
async def get_model(model_id: str, models: Models) -> dict[str, Any]:
    """One served model."""
    return describe(models.find(model_id))


@router.delete("/v1/models/{model_id:path}", response_model=DeletedModel, responses=fails(400))
async def delete_model(model_id: str, models: Models, tuned: Tuned) -> dict[str, Any]:
    """Forget a fine-tuned model and its files."""
    if not await tuned.forget(models.find(model_id)):
        raise InvalidRequest(f"the model {model_id} was not fine-tuned here; only such can be deleted", param="model")
    return {"id": model_id, "object": "model", "deleted": True}


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
        "parent": model.parent,
    }
