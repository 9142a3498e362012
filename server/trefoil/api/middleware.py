"""What surrounds every request, as plain ASGI: its id, the key, rates, times and sizes, one count of how it ended."""

import asyncio
import hashlib
import hmac
import math
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence

import orjson
import structlog
from limits import RateLimitItem
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trefoil.api.sse import event
from trefoil.errors import BodyTooLarge, BodyTooSlow, NotAuthenticated, RateLimited, RequestTimedOut, TrefoilError
from trefoil.metrics import Metrics

log = structlog.get_logger()

OPEN_PATHS = frozenset({"/health", "/ready", "/"})
OPEN_FOLDER = "/static/"
"""The playground's files; what it asks needs a key like everybody else."""
UNCOUNTED_PATHS = frozenset({"/health", "/ready", "/metrics", "/version"})
"""What monitors ask all day: neither limited nor logged."""
MAX_ID_CHARS = 128


class RequestIds:
    """Keeps the caller's x-request-id or gives one; counts and logs responses by route and status.

    What nobody else caught is our own mistake, and an answer too.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, logs: bool) -> None:
        self._app, self._metrics, self._logs = app, metrics, logs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if given.isprintable() and 0 < len(given) <= MAX_ID_CHARS else f"req-{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
                status = message["status"]
                route = getattr(scope.get("route"), "path", "none")
                self._metrics.http_requests.labels(route, str(status)).inc()
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:
                log.exception("unhandled")
                if status:
                    raise
                error = TrefoilError("the server failed on this request; its log has the details")
                await send_error(error, send_with_id)
            finally:
                if self._logs and scope["path"] not in UNCOUNTED_PATHS:
                    took_ms = round((time.monotonic() - started) * 1000, 1)
                    log.info("request", method=scope["method"], path=scope["path"], status=status, took_ms=took_ms)


class ApiKeys:
    """Asks for a bearer key on every path but the probes; keys are compared in constant time."""

    def __init__(self, app: ASGIApp, *, keys: Iterable[str]) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and not _is_open(scope["path"]):
            given = _bearer(scope)
            matches = [hmac.compare_digest(_digest(given or ""), digest) for digest in self._digests]
            if given is None or not any(matches):
                error = NotAuthenticated(
                    "this server asks for a key: send `Authorization: Bearer KEY` with a valid one"
                )
                await send_error(error, send, (b"www-authenticate", b"Bearer"))
                return
        await self._app(scope, receive, send)


class RateLimits:
    """So many requests for each key, or for each address where the server asks for no key; one over is refused."""

    def __init__(self, app: ASGIApp, *, rates: Sequence[RateLimitItem], by_key: bool) -> None:
        self._app, self._by_key = app, by_key
        self._rates = sorted(rates, key=lambda rate: rate.get_expiry())
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in UNCOUNTED_PATHS:
            error = await self._refusal(self._who(scope))
            if error is not None:
                await send_error(error, send)
                return
        await self._app(scope, receive, send)

    def _who(self, scope: Scope) -> str:
        if self._by_key:
            return _digest(_bearer(scope) or "").hex()
        return str((scope.get("client") or ("unknown",))[0])

    async def _refusal(self, who: str) -> RateLimited | None:
        """The limit that `who` has used up; short windows go first, so that haste takes nothing from the long."""
        for rate in self._rates:
            if not await self._limiter.hit(rate, who):
                reset = (await self._limiter.get_window_stats(rate, who)).reset_time
                return RateLimited(str(rate), max(1, math.ceil(reset - time.time())))
        return None


class RequestTimeout:
    """Ends what takes longer than it may: with an error where nothing was said yet, else as a stream's last event."""

    def __init__(self, app: ASGIApp, *, limit_s: float) -> None:
        self._app, self._limit_s = app, limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind: str | None = None

        async def watched(message: Message) -> None:
            nonlocal kind
            if message["type"] == "http.response.start":
                kind = Headers(raw=message["headers"]).get("content-type", "")
            await send(message)

        deadline = asyncio.timeout(self._limit_s if scope["type"] == "http" else None)
        try:
            async with deadline:
                await self._app(scope, receive, watched)
        except TimeoutError:
            if not deadline.expired():
                raise
            error = RequestTimedOut(f"the answer took longer than {self._limit_s:g} s, the most this server allows")
            if kind is None:
                await send_error(error, send)
            else:
                last = event(error.body) if kind.startswith("text/event-stream") else b""
                await send({"type": "http.response.body", "body": last})


class BodyLimit:
    """Refuses bodies over a size, announced or not, and those that stop coming.

    `limits` are those of paths with another than the common one.
    """

    def __init__(self, app: ASGIApp, *, limit: int, limits: Mapping[str, int], timeout_s: float) -> None:
        self._app, self._limit, self._limits, self._timeout_s = app, limit, limits, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limits.get(scope["path"], self._limit)
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            await send_error(_over(limit), send, (b"connection", b"close"))
            return
        taken, is_whole = 0, False

        async def counted() -> Message:
            nonlocal taken, is_whole
            try:
                async with asyncio.timeout(None if is_whole else self._timeout_s):
                    message = await receive()
            except TimeoutError:
                raise BodyTooSlow(f"nothing of the request body came for {self._timeout_s:g} s") from None
            is_whole = not message.get("more_body", False)
            taken += len(message.get("body", b""))
            if taken > limit:
                raise _over(limit)
            return message

        await self._app(scope, counted, send)


async def send_error(error: TrefoilError, send: Send, *headers: tuple[bytes, bytes]) -> None:
    """Answer with an error from outside the application."""
    body = orjson.dumps(error.body)
    length = (b"content-length", str(len(body)).encode())
    start_headers = [(b"content-type", b"application/json"), length, *headers]
    if error.retry_after_s:
        start_headers.append((b"retry-after", str(error.retry_after_s).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": start_headers})
    await send({"type": "http.response.body", "body": body})


def _over(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is over the limit of {limit} bytes")


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def _bearer(scope: Scope) -> str | None:
    """The key that a request brings."""
    scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
