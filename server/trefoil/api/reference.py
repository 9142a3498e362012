"""What the reference says of routes: the shapes of their answers, and the errors that each may give."""

from collections.abc import Iterator
from typing import Any, TypeAlias

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, TypeAdapter

Responses: TypeAlias = dict[int | str, dict[str, Any]]
Operation: TypeAlias = dict[str, Any]


class Answer(BaseModel):
    """A part of an answer as it is written down; a field with a default may be left out."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorDetail(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    """Every error of every route."""

    error: ErrorDetail


ERRORS = {
    400: "A value that cannot be taken; `param` names its field.",
    401: "The server asks for a key, and this is none of them.",
    404: "Nothing of that name is here.",
    408: "The request's body stopped coming.",
    409: "Not now: what is asked for does not fit the state of things.",
    413: "The request's body is too large.",
    429: "Too much at once, by the queue or by the key's rate; `Retry-After` says when to come back.",
    503: "The model is loading, its engine was lost, or the database is away; `Retry-After` says when to come back.",
    504: "The answer took longer than the server allows.",
    507: "What was sent cannot be kept: the disk is full, or may not be written.",
}
PROBES = frozenset({"/health", "/ready"})
UNLIMITED = PROBES | {"/metrics", "/version"}
BUSY = frozenset({429, 503})
STORED = ("/v1/files", "/v1/fine_tuning")
"""How the routes begin whose objects the database has."""
GROUPS = {
    "Generation": ("/v1/chat", "/v1/completions"),
    "Embeddings and ranking": ("/v1/embeddings", "/v1/rerank"),
    "Tasks": ("/v1/tasks",),
    "Tokens and plans": ("/v1/tokenize", "/v1/detokenize", "/v1/plan"),
    "Models": ("/v1/models",),
    "Files": ("/v1/files",),
    "Training": ("/v1/fine_tuning",),
    "Operations": ("/health", "/ready", "/metrics", "/version"),
    "TEI": ("/",),
}
"""The headings of the reference, and how their routes begin; the first that fits."""
EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
KEY = {"key": {"type": "http", "scheme": "bearer", "description": "One of the server's keys, where it asks for one."}}


def says(shape: Any, *, events: str = "") -> Responses:
    """The answer of a route that writes its body itself; `events` tells what it streams where that is asked for."""
    told: dict[str, Any] = {"model": shape}
    if events:
        told["content"] = {"text/event-stream": {"schema": {**EVENT, "description": events}}}
    return {200: told}


def fails(*statuses: int) -> Responses:
    """Errors that a route has beside those that its fields and path imply."""
    return {status: {} for status in statuses}


class App(FastAPI):
    """FastAPI whose OpenAPI names every status with its shape."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = self._described()
        return self.openapi_schema

    def _described(self) -> dict[str, Any]:
        schema = get_openapi(title=self.title, version=self.version, summary=self.summary, routes=self.routes)
        parts = schema["components"]
        for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own shape of a 422, which we never send
            parts["schemas"].pop(name, None)
        error = TypeAdapter(ErrorAnswer).json_schema(ref_template="#/components/schemas/{model}")
        parts["schemas"] |= {**error.pop("$defs"), "ErrorAnswer": error}
        parts["securitySchemes"] = KEY
        schema["security"] = [{}, {"key": []}]
        schema["tags"] = [{"name": group} for group in GROUPS]
        for path, method, operation in operations(schema):
            operation["tags"] = [next(group for group, begins in GROUPS.items() if path.startswith(begins))]
            operation["responses"].pop("422", None)
            for status in sorted(_errors(path, method, operation)):
                operation["responses"].setdefault(str(status), {}).update(_error(status))
        return schema


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, str, Operation]]:
    """Every path and method with what is said of it."""
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _errors(path: str, method: str, operation: Operation) -> set[int]:
    """Which errors an operation may give."""
    if path in PROBES:
        return set()
    given = {int(status) for status in operation["responses"]} & ERRORS.keys()
    parameters = {given["name"] for given in operation.get("parameters", []) if given["in"] != "path"}
    found = {*given, 401, 504}
    if path not in UNLIMITED:
        found.add(429)
    if "requestBody" in operation:
        found |= {400, 408, 413}
    if parameters:
        found.add(400)
    if "model" in parameters:
        found |= {404, 503}
    if "{" in path:
        found.add(404)
    if path.startswith(STORED):
        found |= {503} if method == "get" else {503, 507}
    return found


def _error(status: int) -> dict[str, Any]:
    told: dict[str, Any] = {
        "description": ERRORS[status],
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}},
    }
    if status in BUSY:
        told["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return told
