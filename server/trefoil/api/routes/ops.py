"""The probes and numbers that operators ask for: /health, /ready, /metrics, /version."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from trefoil import __version__
from trefoil.api.deps import Models
from trefoil.api.sse import json_response

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(models: Models) -> Response:
    """200 when every model given at the start can answer, else 503 with what is loading."""
    loading = [name for name, model in models.models.items() if model.parent is None and model.engine.ready is None]
    body: dict[str, Any] = {"status": "loading" if loading else "ready", "loading": loading}
    return json_response(body, 503 if loading else 200, {"retry-after": "2"} if loading else None)


@router.get("/metrics")
async def metrics(models: Models) -> Response:
    """Prometheus text."""
    return Response(models.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


@router.get("/version")
async def version() -> dict[str, str]:
    """Which trefoil this is."""
    return {"version": __version__}
