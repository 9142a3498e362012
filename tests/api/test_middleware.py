"""Rates, times and sizes around a route, in process: who is refused, with what, and for how long."""

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from limits import parse_many
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from trefoil.api.app import _trefoil_error
from trefoil.api.middleware import BodyLimit, RateLimits, RequestTimeout
from trefoil.errors import TrefoilError


async def ok(_request: Request) -> Response:
    return JSONResponse({})


async def read(request: Request) -> Response:
    return JSONResponse({"size": len(await request.body())})


async def never(_request: Request) -> Response:
    await asyncio.sleep(60)
    return JSONResponse({})


async def endless(_request: Request) -> Response:
    async def events() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await asyncio.sleep(60)

    return StreamingResponse(events(), media_type="text/event-stream")


ROUTES = {
    "/v1/models": ok,
    "/metrics": ok,
    "/v1/files": read,
    "/v1/completions": read,
    "/never": never,
    "/sse": endless,
}


def served(wrap: Callable[[ASGIApp], ASGIApp]) -> httpx.AsyncClient:
    """A client of a small application inside one middleware."""
    routes = [Route(path, handler, methods=["GET", "POST"]) for path, handler in ROUTES.items()]
    app = Starlette(routes=routes, exception_handlers={TrefoilError: _trefoil_error})
    return httpx.AsyncClient(transport=httpx.ASGITransport(wrap(app)), base_url="http://here")


def limited(rates: str, *, by_key: bool = True) -> httpx.AsyncClient:
    return served(lambda app: RateLimits(app, rates=parse_many(rates), by_key=by_key))


async def test_a_key_over_its_rate_is_429_and_told_when_to_come_back() -> None:
    async with limited("3/minute") as http:
        mine, other = {"authorization": "Bearer a"}, {"authorization": "Bearer b"}
        statuses = [(await http.get("/v1/models", headers=mine)).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        refused = await http.get("/v1/models", headers=mine)
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 50 <= int(refused.headers["retry-after"]) <= 60
        assert (await http.get("/v1/models", headers=other)).status_code == 200


async def test_a_rate_is_open_again_once_its_window_has_passed() -> None:
    async with limited("1/second;100/hour") as http:
        assert (await http.get("/v1/models")).status_code == 200
        refused = await http.get("/v1/models")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        await asyncio.sleep(1.1)
        assert (await http.get("/v1/models")).status_code == 200


async def test_haste_takes_nothing_from_the_long_window() -> None:
    async with limited("3/hour;1/second") as http:
        for _ in range(5):
            await http.get("/v1/models")
        await asyncio.sleep(1.1)
        assert (await http.get("/v1/models")).status_code == 200


async def test_monitors_are_not_limited_and_an_address_is_its_own_key() -> None:
    async with limited("1/minute", by_key=False) as http:
        assert {(await http.get("/metrics")).status_code for _ in range(5)} == {200}
        headers = [{"authorization": f"Bearer {name}"} for name in "ab"]
        assert [(await http.get("/v1/models", headers=one)).status_code for one in headers] == [200, 429]


async def test_an_answer_that_takes_too_long_is_504() -> None:
    async with served(lambda app: RequestTimeout(app, limit_s=0.05)) as http:
        answer = await http.get("/never")
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "request_timeout")
        assert (await http.get("/v1/models")).status_code == 200


async def test_a_stream_that_takes_too_long_ends_with_an_error_event() -> None:
    async with served(lambda app: RequestTimeout(app, limit_s=0.05)) as http:
        first, last, rest = (await http.get("/sse")).text.split("\n\n")
        assert (first, rest) == ("data: 1", "")
        assert "request_timeout" in last


def bounded(app: ASGIApp) -> ASGIApp:
    return BodyLimit(app, limit=10, limits={"/v1/files": 100}, timeout_s=0.05)


@pytest.mark.parametrize(
    ("path", "size", "status"), [("/v1/completions", 11, 413), ("/v1/files", 11, 200), ("/v1/files", 101, 413)]
)
async def test_files_have_a_limit_of_their_own(path: str, size: int, status: int) -> None:
    async with served(bounded) as http:
        assert (await http.post(path, content=b"x" * size)).status_code == status


async def test_a_body_that_stops_coming_is_408() -> None:
    sent: list[Message] = []

    async def silent() -> Message:
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    app = Starlette(routes=[Route("/", read, methods=["POST"])], exception_handlers={TrefoilError: _trefoil_error})
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    await bounded(app)(scope, silent, send)
    assert sent[0]["status"] == 408
