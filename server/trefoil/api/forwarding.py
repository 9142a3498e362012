"""Requests for a model that another server answers for: passed on before anything of ours reads their fields."""

from contextlib import ExitStack
from json import JSONDecodeError
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from trefoil.api.deps import while_connected
from trefoil.api.fleet import Fleet
from trefoil.api.json_route import Handler, JsonRequest, JsonRoute
from trefoil.api.sse import EventStream, json_response
from trefoil.api.upstream import RemoteModel

TASKS = {
    "/v1/chat/completions": "text-generation",
    "/v1/completions": "text-generation",
    "/v1/embeddings": "embeddings",
}
"""What a model must be able to do, by the route."""


class UpstreamRoute(JsonRoute):
    """A route that other servers have too."""

    async def answer(self, request: JsonRequest, handle: Handler) -> Response:
        fleet: Fleet = request.app.state.fleet
        body = await read_object(request) if fleet.remotes else None
        if body is None or not isinstance(body.get("model"), str | None):
            return await handle(request)  # which says what is wrong with it
        task = TASKS[self.path]
        model = fleet.pick(body.get("model"), request.query_params.get("model"), task=task)
        if not isinstance(model, RemoteModel):
            return await handle(request)
        fleet.metrics.tasks.labels(model.name, task).inc()
        return await passed_on(request, model, body)


async def read_object(request: JsonRequest) -> dict[str, Any] | None:
    """The request's body, where it is a JSON object."""
    try:
        body = await request.json()
    except JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


async def passed_on(request: Request, model: RemoteModel, body: dict[str, Any]) -> Response:
    """The other server's answer, streamed where it streams. A client that leaves takes its request back there too."""
    exchange = model.ask(request.url.path.removeprefix("/v1"), body, request.state.request_id)
    with ExitStack() as undo:
        undo.callback(exchange.end)
        answer = await while_connected(request, exchange.begin(), lambda: None)
        if answer.is_stream:
            undo.pop_all()
            return EventStream(answer.events(), exchange.end)
        return json_response(await while_connected(request, answer.whole(), lambda: None))


async def completed(request: Request, model: RemoteModel, asked: dict[str, Any], *, count: int) -> list[str]:
    """The other server's completions of as many prompts. Raises TrefoilError."""
    exchange = model.ask("/completions", asked, request.state.request_id)

    async def texts() -> list[str]:
        told = await (await exchange.begin()).whole()
        match told.get("choices"):
            case [*choices] if len(found := [one["text"] for one in choices if _has_text(one)]) == count:
                return found
        raise model.lost("answered what is no answer", told)

    return await while_connected(request, texts(), exchange.end)


def _has_text(choice: Any) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("text"), str)
