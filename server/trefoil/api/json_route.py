"""How bodies are read: strict JSON and strict UTF-8, no NaN, no lone surrogates, no bottomless nesting."""

import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import orjson
from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

Handler: TypeAlias = Callable[[Request], Coroutine[Any, Any, Response]]


class JsonRequest(Request):
    """Reads its body by orjson."""

    async def json(self) -> Any:
        body = await self.body()
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise json.JSONDecodeError(error.msg, "", error.pos) from error


class JsonRoute(APIRoute):
    """A route whose handler gets a JsonRequest; a router must be made with it, before its routes are."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def with_json(request: Request) -> Response:
            return await self.answer(JsonRequest(request.scope, request.receive), handle)

        return with_json

    async def answer(self, request: JsonRequest, handle: Handler) -> Response:
        """What the handler answers."""
        return await handle(request)
