"""Clients for fault tests: plain sockets under httpx, so that a test decides when a connection breaks."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from e2e.serving import Server

PATH = "/v1/completions"


def endless(model: str = "a", **changed: Any) -> dict[str, Any]:
    """A request whose answer ends only with the context."""
    return {"model": model, "prompt": [5, 6, 7], "max_tokens": 16_000, "ignore_eos": True, **changed}


def short(server: Server, model: str = "a") -> httpx.Response:
    """A request that is answered at once."""
    body = {"model": model, "prompt": [5, 6, 7], "max_tokens": 2}
    return httpx.post(f"{server.url}{PATH}", json=body, timeout=30)


class Events:
    """The payloads of a stream, one by one; `[DONE]` stands as it is."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.iter_lines()

    def next(self) -> Any:
        """The next event."""
        line = next(line for line in self._lines if line)
        data = line.removeprefix("data: ")
        return data if data == "[DONE]" else json.loads(data)

    def rest(self) -> list[Any]:
        """All that is still to come."""
        payloads = [line.removeprefix("data: ") for line in self._lines if line]
        return [data if data == "[DONE]" else json.loads(data) for data in payloads]


@contextmanager
def streaming(server: Server, **changed: Any) -> Iterator[Events]:
    """An endless stream that has begun."""
    body = endless(**changed, stream=True)
    with (
        httpx.Client(timeout=60) as client,
        client.stream("POST", f"{server.url}{PATH}", json=body) as answer,
    ):
        events = Events(answer)
        events.next()
        yield events
