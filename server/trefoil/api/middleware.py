"""What surrounds every request, as plain ASGI: its id, the key, the body's limit, one count of how it ended."""

import hashlib
import hmac
import uuid
from collections.abc import Iterable, Mapping

import orjson
import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trefoil.errors import BodyTooLarge, NotAuthenticated, TrefoilError
from trefoil.metrics import Metrics

OPEN_PATHS = frozenset({"/health", "/ready"})
MAX_ID_CHARS = 128


class RequestIds:
    """Keeps the caller's x-request-id or gives one; counts responses by route and status."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if given.isprintable() and 0 < len(given) <= MAX_ID_CHARS else f"req-{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
                route = getattr(scope.get("route"), "path", "none")
                self._metrics.http_requests.labels(route, str(message["status"])).inc()
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._app(scope, receive, send_with_id)


class ApiKeys:
    """Asks for a bearer key on every path but the probes; keys are compared in constant time."""

    def __init__(self, app: ASGIApp, *, keys: Iterable[str]) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and scope["path"] not in OPEN_PATHS:
            scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            matches = [hmac.compare_digest(_digest(key.strip()), digest) for digest in self._digests]
            if scheme.lower() != "bearer" or not any(matches):
                error = NotAuthenticated(
                    "this server asks for a key: send `Authorization: Bearer KEY` with a valid one"
                )
                await send_error(error, send, (b"www-authenticate", b"Bearer"))
                return
        await self._app(scope, receive, send)


class BodyLimit:
    """Refuses bodies over a size, announced or not; `limits` are those of paths with another than the common one."""

    def __init__(self, app: ASGIApp, *, limit: int, limits: Mapping[str, int]) -> None:
        self._app, self._limit, self._limits = app, limit, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limits.get(scope["path"], self._limit)
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            await send_error(_over(limit), send, (b"connection", b"close"))
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise _over(limit)
            return message

        await self._app(scope, counted, send)


def _over(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is over the limit of {limit} bytes")


async def send_error(error: TrefoilError, send: Send, *headers: tuple[bytes, bytes]) -> None:
    """Answer with an error from outside the application."""
    body = orjson.dumps(error.body)
    length = (b"content-length", str(len(body)).encode())
    start_headers = [(b"content-type", b"application/json"), length, *headers]
    await send({"type": "http.response.start", "status": error.status, "headers": start_headers})
    await send({"type": "http.response.body", "body": body})


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
