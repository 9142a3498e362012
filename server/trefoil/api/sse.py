"""Server-sent events as bytes: a chunk's constant part is encoded once, only what changes per event each time."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import structlog
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from trefoil.errors import TrefoilError

log = structlog.get_logger()

DONE = b"data: [DONE]\n\n"


class ChunkWriter:
    """Writes chunks that differ in their `choices` (and, at the end, `usage`) only."""

    def __init__(self, constant: dict[str, Any], *, has_usage: bool) -> None:
        self._head = b"data: " + orjson.dumps(constant)[:-1] + b',"choices":'
        self._tail = b',"usage":null}\n\n' if has_usage else b"}\n\n"

    def chunk(self, choice: dict[str, Any]) -> bytes:
        """One event with one choice."""
        return self._head + b"[" + orjson.dumps(choice) + b"]" + self._tail

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last event before the end: no choices, the whole usage."""
        return self._head + b'[],"usage":' + orjson.dumps(usage) + b"}\n\n"


def event(payload: Any) -> bytes:
    """One event with a JSON payload."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


class EventStream(StreamingResponse):
    """The response; a failure on the way becomes one error event, and then the stream closes.

    `on_end` is called however it ends, also where the client left before the first event was asked for.
    """

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_told(events), media_type="text/event-stream", headers=headers)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


def json_response(payload: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """One JSON body."""
    return Response(orjson.dumps(payload), status, headers, media_type="application/json")


async def _told(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for item in events:
            yield item
    except TrefoilError as error:
        yield event(error.body)
    except Exception:
        log.exception("stream_failed")
        yield event(TrefoilError("the server failed while answering; the log has the details").body)
