"""The application: routers, what surrounds them, and one shape for every error."""

import errno
import os

import sqlalchemy as sa
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from trefoil import __version__
from trefoil.api.deps import ClientGone, gone
from trefoil.api.fine_tuned import FineTuned
from trefoil.api.fleet import Fleet
from trefoil.api.middleware import ApiKeys, BodyLimit, RateLimits, RequestIds, RequestTimeout
from trefoil.api.playground import add_playground
from trefoil.api.reference import App
from trefoil.api.routes import ops, plan, rerank, tei
from trefoil.api.routes.openai import chat, completions, embeddings, files, fine_tuning, models
from trefoil.api.routes.tasks import (
    embedding,
    fill_mask,
    perplexity,
    question_answering,
    reward,
    rewriting,
    sentence_pairs,
    span_filling,
    text_classification,
    text_generation,
    token_classification,
    tokenize,
    zero_shot,
)
from trefoil.api.sse import json_response
from trefoil.api.tracing import Traces, Tracing
from trefoil.api.validation import explain
from trefoil.errors import DatabaseAway, InvalidRequest, NotStored, TrefoilError, error_body
from trefoil.metrics import Metrics
from trefoil.settings import Settings
from trefoil.store.database import is_full
from trefoil.store.store import Store

log = structlog.get_logger()

OF_DISKS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO})
"""What an OSError says of a disk that does not take what it is given."""
SUMMARY = "Decoders, encoders and encoder-decoders behind the routes of OpenAI, Hugging Face and TEI."

ROUTERS = (
    chat.router,
    completions.router,
    embeddings.router,
    rerank.router,
    models.router,
    files.router,
    fine_tuning.router,
    tokenize.router,
    text_generation.router,
    perplexity.router,
    text_classification.router,
    reward.router,
    plan.router,
    token_classification.router,
    question_answering.router,
    fill_mask.router,
    embedding.router,
    zero_shot.router,
    sentence_pairs.router,
    tei.router,
    rewriting.router,
    span_filling.router,
    ops.router,
)


def bare_app() -> App:
    """The routes with nothing behind or around them, from which the reference is written."""
    app = App(title="trefoil", summary=SUMMARY, version=__version__, docs_url=None, redoc_url=None)
    for router in ROUTERS:
        app.include_router(router)
    add_playground(app)
    return app


def create_app(fleet: Fleet, store: Store, tuned: FineTuned, traces: Traces | None = None) -> FastAPI:
    """The server's ASGI application over a started fleet."""
    app = bare_app()
    app.state.fleet, app.state.store, app.state.tuned = fleet, store, tuned
    app.add_exception_handler(TrefoilError, _trefoil_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientGone, gone)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(sa.exc.OperationalError, _database_error)
    app.add_exception_handler(OSError, _disk_error)
    app.add_exception_handler(RecursionError, _too_deep)
    _surround(app, fleet.settings, fleet.metrics, traces)
    return app


def _surround(app: FastAPI, settings: Settings, metrics: Metrics, traces: Traces | None) -> None:
    """Put the middleware around the routes; the last added is the outermost."""
    app.add_middleware(
        BodyLimit,
        limit=settings.max_body_size,
        limits={"/v1/files": settings.max_upload_size},
        timeout_s=settings.body_timeout,
    )
    if settings.request_timeout is not None:
        app.add_middleware(RequestTimeout, limit_s=settings.request_timeout)
    if settings.rate_limits:
        app.add_middleware(RateLimits, rates=settings.rate_limits, by_key=bool(settings.api_keys))
    app.add_middleware(ApiKeys, keys=settings.api_keys)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    if traces is not None:
        app.add_middleware(Tracing, tracer=traces.tracer)
    app.add_middleware(RequestIds, metrics=metrics, logs=settings.access_log)


def _answer(error: TrefoilError) -> Response:
    headers = {"retry-after": str(error.retry_after_s)} if error.retry_after_s else None
    return json_response(error.body, error.status, headers)


async def _trefoil_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, TrefoilError)
    return _answer(error)


async def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    param, message = explain(error.errors(), error.body)
    told = f"{param}: {message}" if param else message
    return json_response(error_body(told, "invalid_request_error", param, "invalid_value"), 400)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, TrefoilError):
        return _answer(error.__cause__)
    code = {404: "route_not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    headers = dict(error.headers) if error.headers else None
    return json_response(error_body(_routing(request, error), kind, None, code), error.status_code, headers)


def _routing(request: Request, error: HTTPException) -> str:
    """Starlette's refusal in words that help."""
    path = request.url.path
    if error.status_code == 404:
        return f"there is no route {request.method} {path}; GET /docs lists them all"
    if error.status_code == 405:
        return f"{path} takes {(error.headers or {}).get('Allow', 'another method')}, not {request.method}"
    return str(error.detail)


async def _database_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, sa.exc.OperationalError)
    log.error("database_away", why=str(error.orig))
    if is_full(error):
        return _answer(NotStored("the server's disk is full: nothing can be written down until there is room"))
    return _answer(DatabaseAway("the server's database does not answer; try again shortly"))


async def _too_deep(_request: Request, _error: Exception) -> Response:
    """What we call ourselves for is a request's nesting and nothing else."""
    return _answer(InvalidRequest("the body is nested too deeply"))


async def _disk_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    if error.errno not in OF_DISKS:
        raise error
    log.error("not_stored", why=str(error))
    return _answer(NotStored(f"the server cannot keep this: {os.strerror(error.errno).lower()}"))
