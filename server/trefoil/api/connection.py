"""A connection's HTTP as uvicorn reads it, with bounds on a request's head, and our errors for what is no request.

What stops half-way through a head, or never was HTTP, does not reach the application: it is answered here.
"""

import asyncio
import contextlib
import re
import uuid
from typing import Any

import httptools
import orjson
import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from trefoil.errors import HeadTooLarge, HeadTooSlow, InvalidRequest, TrefoilError

log = structlog.get_logger()

MOST_HEAD = 512 * 1024
"""Bytes; more than one read from a socket brings, so that what else came with it is not held against a head."""
UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)


class Connection(HttpToolsProtocol):
    """One client's connection. A request's head must come whole within `head_timeout_s`."""

    def __init__(self, *given: Any, head_timeout_s: float, **more: Any) -> None:
        super().__init__(*given, **more)
        self._head_timeout_s = head_timeout_s
        self._late: asyncio.TimerHandle | None = None
        self._head_len = 0
        self._is_in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if not self._is_in_body:
            self._await_head()
            data = without_upgrade(data)
        try:
            with contextlib.suppress(httptools.HttpParserUpgrade):  # CONNECT: refused as any unknown method
                self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse(InvalidRequest("this is not an HTTP/1.1 request"))
            return
        if not self._is_in_body:
            self._head_len += len(data)
            if self._head_len > MOST_HEAD:
                self._refuse(HeadTooLarge(f"a request's head may have {MOST_HEAD} bytes"))

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        self._is_in_body, self._head_len = True, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_body = False
        super().on_message_complete()

    def _await_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self._head_timeout_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        """A client that said nothing at all is told nothing."""
        self._late = None
        if self._head_len:
            self._refuse(HeadTooSlow(f"the head of the request did not come within {self._head_timeout_s:g} s"))
        elif not self._is_answering:
            self.transport.close()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete

    def _refuse(self, error: TrefoilError) -> None:
        """Answer and hang up; in the middle of another answer, hang up."""
        log.info("refused", status=error.status, why=error.message)
        if not self._is_answering and not self.transport.is_closing():
            self.transport.write(written(error))
        self.transport.close()


def without_upgrade(data: bytes) -> bytes:
    """The data, its head without a wish for HTTP/2 or WebSocket: the parser would drop the body that follows it."""
    found = UPGRADE.search(data, 0, max(data.find(b"\r\n\r\n"), 0))
    return data if found is None else data[: found.start()] + data[found.end() :]


def written(error: TrefoilError) -> bytes:
    """The whole answer."""
    body = orjson.dumps(error.body)
    headers = (
        "content-type: application/json",
        f"content-length: {len(body)}",
        f"x-request-id: req-{uuid.uuid4().hex}",
        "connection: close",
    )
    return STATUS_LINE[error.status] + "\r\n".join((*headers, "\r\n")).encode() + body
