"""POST /v1/tasks/perplexity: how well the model foresaw a text.

PPL = exp(-1/N sum log p(x_i | x_<i)) over the N tokens after the first; `nll` is the exponent, in nats.
"""

import asyncio
import math
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from trefoil.api.deps import Models, while_connected
from trefoil.api.fleet import ServedModel
from trefoil.api.generation import begin, encode_prompt
from trefoil.api.json_route import JsonRoute
from trefoil.api.schemas import GenerationParams, Text
from trefoil.api.sse import json_response
from trefoil.api.text_stream import TextStream
from trefoil.errors import InvalidRequest

router = APIRouter(route_class=JsonRoute)

MAX_TEXTS = 256


class NoParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PerplexityRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    inputs: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
    parameters: NoParameters | None = None
    model: str | None = None


@router.post("/v1/tasks/perplexity")
async def perplexity(body: PerplexityRequest, request: Request, models: Models, model: str | None = None) -> Response:
    """Score a text, or each of a list."""
    served = models.find(body.model, model, task="perplexity")
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    encoded = [await encode_prompt(models, served, text, param="inputs") for text in texts]
    for ids in encoded:
        if len(ids) < 2:
            raise InvalidRequest("a text of at least two tokens is needed to score one", param="inputs")
    asked = GenerationParams(max_tokens=0, prompt_logprobs=0)
    params = [asked.sampling(served, len(ids), param="inputs", default_tokens=0, logprobs=None) for ids in encoded]
    begun: list[TextStream] = []

    def close() -> None:
        for stream in begun:
            stream.close()

    async def score_all() -> list[dict[str, Any]]:
        begun.extend(begin(served, ids, own, asked) for ids, own in zip(encoded, params, strict=True))
        return await asyncio.gather(*(_score(served, ids, stream) for ids, stream in zip(encoded, begun, strict=True)))

    answers = await while_connected(request, score_all(), close)
    return json_response(answers[0] if isinstance(body.inputs, str) else answers)


async def _score(model: ServedModel, ids: list[int], stream: TextStream) -> dict[str, Any]:
    async for _ in stream:
        pass
    logprobs = [score.logprob for score in stream.prompt_scores]
    nll = -math.fsum(logprobs) / len(logprobs)
    return {
        "perplexity": math.exp(min(nll, 700.0)),
        "nll": nll,
        "tokens": [model.tokenizer.token_text(token_id) for token_id in ids],
        "token_logprobs": [None, *logprobs],
    }
