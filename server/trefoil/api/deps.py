"""What handlers ask for in their signatures; coroutines, as FastAPI runs plain functions in a thread, a hop each."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from starlette.responses import Response

from trefoil.api.fine_tuned import FineTuned
from trefoil.api.fleet import Fleet
from trefoil.store.store import Store

T = TypeVar("T")

CLIENT_CLOSED_REQUEST = 499


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def _fleet(request: Request) -> Fleet:
    fleet: Fleet = request.app.state.fleet
    return fleet


async def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


async def _tuned(request: Request) -> FineTuned:
    tuned: FineTuned = request.app.state.tuned
    return tuned


async def _request_id(request: Request) -> str:
    request_id: str = request.state.request_id
    return request_id


Models = Annotated[Fleet, Depends(_fleet)]
Tuned = Annotated[FineTuned, Depends(_tuned)]
Stored = Annotated[Store, Depends(_store)]
RequestId = Annotated[str, Depends(_request_id)]


async def while_connected(request: Request, work: Coroutine[Any, Any, T], on_end: Callable[[], None]) -> T:
    """Do work for a client that waits; cancels it when the client leaves and raises ClientGone.

    `on_end` is called however it ends, also where the work never began.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        on_end()
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def gone(_request: Request, _error: Exception) -> Response:
    """Nobody reads this."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)
