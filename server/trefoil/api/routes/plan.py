"""POST /v1/plan/kv-cache and /v1/plan/scaling: sizes before anything is bought, with the formulas that gave them."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from trefoil.api.deps import Models
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import Answer
from trefoil.errors import InvalidRequest
from trefoil.planning import LAWS, CacheShape, cache_plan
from trefoil_models.config_keys import CheckpointError, Keys
from trefoil_models.model_folder import ModelFolder

router = APIRouter(route_class=JsonRoute)

Count = Annotated[int, Field(ge=1, le=10**9)]
Amount = Annotated[float, Field(ge=1, le=1e40)]


class CacheRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    config: dict[str, Any] | None = None
    batch_size: Count = 1
    seq_len: Count = 2048
    dtype: Literal["float32", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2", "int8"] | None = None
    page_size: Annotated[int, Field(ge=1, le=1024)] = 16


class ScalingRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    compute_flops: Amount | None = None
    parameters: Amount | None = None
    tokens: Amount | None = None
    law: Literal["kaplan", "chinchilla"] = "chinchilla"


class CachePlan(Answer):
    bytes: int
    bytes_per_token: int
    bytes_per_sequence: int
    num_pages: int
    allocated_bytes: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    page_size: int
    formula: str


class ScalingPlan(Answer):
    law: str
    parameters: float
    tokens: float
    compute_flops: float
    loss: float
    formula: str


@router.post("/v1/plan/kv-cache", response_model=CachePlan)
async def plan_cache(body: CacheRequest, models: Models, model: str | None = None) -> dict[str, int | str]:
    """What a KV cache takes, for a served model or for a config.json's content. `dtype` unless given: what a loaded
    model's pages hold, else bfloat16.
    """
    if body.config is not None and (body.model or model):
        raise InvalidRequest("give either model or config", param="config")
    if body.config is not None:
        field, config, dtype = "config", Keys(body.config), None
    else:
        served = models.find(body.model, model)
        field, config = "model", ModelFolder.read(served.folder).config
        dtype = served.engine.ready and served.engine.ready.page_dtype
    try:
        shape = CacheShape.read(config)
    except CheckpointError as error:
        raise InvalidRequest(str(error), param=field) from error
    return cache_plan(
        shape,
        batch_size=body.batch_size,
        seq_len=body.seq_len,
        dtype=body.dtype or dtype or "bfloat16",
        page_size=body.page_size,
    )


@router.post("/v1/plan/scaling", response_model=ScalingPlan)
async def plan_scaling(body: ScalingRequest) -> dict[str, float | str]:
    """How parameters, tokens and arithmetic go together: give one of them."""
    given = [name for name in ("compute_flops", "parameters", "tokens") if getattr(body, name) is not None]
    if len(given) != 1:
        raise InvalidRequest(
            f"give exactly one of compute_flops, parameters and tokens, not {len(given)}",
            param=given[1] if given else "compute_flops",
        )
    return {"law": body.law, **LAWS[body.law](body.compute_flops, body.parameters, body.tokens)}
