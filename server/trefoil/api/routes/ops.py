"""The probes and numbers that operators ask for: /health, /ready, /metrics, /version."""

from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool

from trefoil import __version__
from trefoil.api.deps import Models, Stored
from trefoil.api.reference import Answer, Responses, says
from trefoil.api.sse import json_response

router = APIRouter()


class Health(Answer):
    status: Literal["ok"]


class Readiness(Answer):
    status: Literal["ready", "loading"]
    loading: list[str]


class Version(Answer):
    version: str


NUMBERS: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/health", response_model=Health)
async def health() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}


@router.get("/ready", responses={**says(Readiness), 503: {"model": Readiness}})
async def ready(models: Models) -> Response:
    """200 when every model given at the start can answer, else 503 with what is loading."""
    first = [source.name for source in models.settings.models if source.name in models.models]
    loading = [name for name in first if models.models[name].engine.ready is None]
    loading += [name for name, remote in models.remotes.items() if not remote.is_up]
    body: dict[str, Any] = {"status": "loading" if loading else "ready", "loading": loading}
    return json_response(body, 503 if loading else 200, {"retry-after": "2"} if loading else None)


@router.get("/metrics", response_class=Response, responses=NUMBERS)
async def metrics(models: Models, store: Stored) -> Response:
    """Prometheus text."""
    for state, number in (await run_in_threadpool(store.jobs.counts)).items():
        models.metrics.jobs.labels(state).set(number)
    return Response(models.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


@router.get("/version", response_model=Version)
async def version() -> dict[str, str]:
    """Which trefoil this is."""
    return {"version": __version__}
