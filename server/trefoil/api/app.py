"""The application: routers, what surrounds them, and one shape for every error."""

import json
from collections.abc import Sequence
from typing import Any

import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from trefoil import __version__
from trefoil.api.deps import ClientGone, gone
from trefoil.api.fleet import Fleet
from trefoil.api.middleware import ApiKeys, BodyLimit, RequestIds
from trefoil.api.routes import ops
from trefoil.api.routes.openai import chat, completions, models
from trefoil.api.routes.tasks import perplexity, text_generation, tokenize
from trefoil.api.sse import json_response
from trefoil.errors import TrefoilError, error_body

log = structlog.get_logger()

ROUTERS = (
    chat.router,
    completions.router,
    models.router,
    tokenize.router,
    text_generation.router,
    perplexity.router,
    ops.router,
)


class JsonRequest(Request):
    """Reads bodies by orjson: strict JSON, strict UTF-8, no NaN, no lone surrogates."""

    async def json(self) -> Any:
        body = await self.body()
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise json.JSONDecodeError(error.msg, "", error.pos) from error


class JsonRoute(APIRoute):
    """A route whose handler gets a JsonRequest."""

    def get_route_handler(self) -> Any:
        handle = super().get_route_handler()

        async def with_json(request: Request) -> Response:
            response: Response = await handle(JsonRequest(request.scope, request.receive))
            return response

        return with_json


def create_app(fleet: Fleet) -> FastAPI:
    """The server's ASGI application over a started fleet."""
    app = FastAPI(title="trefoil", version=__version__, redoc_url=None)
    app.state.fleet = fleet
    for router in ROUTERS:
        router.route_class = JsonRoute
        app.include_router(router)
    app.add_exception_handler(TrefoilError, _trefoil_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientGone, gone)
    app.add_exception_handler(Exception, _bug)
    settings = fleet.settings
    # the last added is the outermost
    app.add_middleware(BodyLimit, limit=settings.max_body_size)
    app.add_middleware(ApiKeys, keys=settings.api_keys)
    app.add_middleware(RequestIds, metrics=fleet.metrics)
    return app


def _answer(error: TrefoilError) -> Response:
    headers = {"retry-after": str(error.retry_after_s)} if error.retry_after_s else None
    return json_response(error.body, error.status, headers)


async def _trefoil_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, TrefoilError)
    return _answer(error)


async def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    param = _param(problems[0], error.body)
    same = [problem for problem in problems if _param(problem, error.body) == param]
    # of a union, the branches that the value's type rules out say nothing
    apt = [problem for problem in same if not problem["type"].endswith("_type")] or same
    message = "; or ".join(dict.fromkeys(_told(problem) for problem in apt))
    return json_response(
        error_body(f"{param}: {message}" if param else message, "invalid_request_error", param, "invalid_value"), 400
    )


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, TrefoilError):
        return _answer(error.__cause__)
    code = {404: "route_not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    headers = dict(error.headers) if error.headers else None
    return json_response(error_body(str(error.detail), kind, None, code), error.status_code, headers)


async def _bug(_request: Request, error: Exception) -> Response:
    log.error("unhandled", exc_info=error)
    return _answer(TrefoilError("the server failed on this request; its log has the details"))


def _told(problem: dict[str, Any]) -> str:
    if problem["type"] == "json_invalid":
        return f"the body is no valid JSON: {problem['ctx']['error']}"
    if problem["type"] in ("model_attributes_type", "dict_type") and len(problem["loc"]) == 1:
        return "the body must be a JSON object, sent with Content-Type: application/json"
    text: str = problem["msg"].removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def _param(problem: dict[str, Any], body: Any) -> str | None:
    """The field as the client wrote it: what pydantic adds to a path (the branch of a union) is in no body."""
    if problem["type"] == "json_invalid":
        return None
    where, *path = problem["loc"]
    value, written = (body, "") if where == "body" else (None, str(path[-1]) if path else "")
    for number, part in enumerate(path if where == "body" else []):
        is_last = number == len(path) - 1
        if isinstance(part, int) and isinstance(value, Sequence) and not isinstance(value, str) and part < len(value):
            value, written = value[part], f"{written}[{part}]"
        elif isinstance(value, dict) and (part in value or (is_last and problem["type"] == "missing")):
            value, written = value.get(part), f"{written}.{part}" if written else str(part)
    return written or None
