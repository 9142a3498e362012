"""POST /v1/tasks/perplexity: how well the model foresaw a text.

PPL = exp(-1/N sum log p(x_i | x_<i)) over the N tokens after the first; `nll` is the exponent, in nats. A masked LM
gives the pseudo-perplexity (Salazar et al., arXiv 1910.14659): each token of the text is scored with itself masked. Of
a target an encoder-decoder foresees every token, given the text that its encoder read.
"""

import asyncio
import math
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from trefoil import wire
from trefoil.api.deps import Models, while_connected
from trefoil.api.fleet import Fleet, ServedModel
from trefoil.api.generation import begin, encode_prompt
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import Answer, says
from trefoil.api.schemas import GenerationParams
from trefoil.api.scoring import answered, encode_all, numbers, once
from trefoil.api.sse import json_response
from trefoil.api.text import Text
from trefoil.api.text_stream import TextStream
from trefoil.errors import InvalidRequest, RequestTooLong
from trefoil_models.cutting import Encoding

router = APIRouter(route_class=JsonRoute)

MAX_TEXTS = 256


class NoParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Target(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    text: Text
    target: Text


class PerplexityRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    inputs: (
        Text
        | Target
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
        | Annotated[list[Target], Field(min_length=1, max_length=MAX_TEXTS)]
    )
    parameters: NoParameters | None = None
    model: str | None = None


class PerplexityAnswer(Answer):
    perplexity: float
    nll: float
    tokens: list[str]
    token_logprobs: list[float | None]


@router.post("/v1/tasks/perplexity", responses=says(PerplexityAnswer | list[PerplexityAnswer]))
async def perplexity(body: PerplexityRequest, request: Request, models: Models, model: str | None = None) -> Response:
    """Score a text, or a target given a text, or each of a list."""
    inputs = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    if targets := [one for one in inputs if isinstance(one, Target)]:
        served = models.find(body.model, model, task="text2text-generation")
        found = await while_connected(request, _score_targets(models, served, targets), lambda: None)
        return json_response(found if isinstance(body.inputs, list) else found[0])
    served = models.find(body.model, model, task="perplexity")
    texts = [one for one in inputs if isinstance(one, str)]
    if "text-generation" not in served.tasks:
        answers = await answered(request, _pseudo(models, served, texts))
        return json_response(answers[0] if isinstance(body.inputs, str) else answers)
    if served.start is not None:
        raise InvalidRequest('this model scores a target given a text: {"text", "target"}', param="inputs")
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


async def _score_targets(fleet: Fleet, model: ServedModel, targets: list[Target]) -> list[dict[str, Any]]:
    return list(await asyncio.gather(*(_score_target(fleet, model, one) for one in targets)))


async def _score_target(fleet: Fleet, model: ServedModel, one: Target) -> dict[str, Any]:
    ids = await encode_prompt(fleet, model, one.text, param="inputs")
    target = await encode_prompt(fleet, model, one.target, param="inputs")
    limit = model.ready.max_model_len
    if len(ids) > limit or len(target) + 1 > limit:
        raise RequestTooLong(len(ids), len(target), limit, param="inputs")
    params = wire.SamplingParams(max_tokens=0, prompt_logprobs=0)
    stream = begin(model, ids, params, GenerationParams(), target=target)
    async for _ in stream:
        pass
    logprobs: list[float | None] = [score.logprob for score in stream.prompt_scores]
    return _body([model.tokenizer.token_text(i) for i in target], logprobs)


async def _score(model: ServedModel, ids: list[int], stream: TextStream) -> dict[str, Any]:
    async for _ in stream:
        pass
    return _body([model.tokenizer.token_text(i) for i in ids], [None, *(s.logprob for s in stream.prompt_scores)])


async def _pseudo(fleet: Fleet, model: ServedModel, texts: list[str]) -> list[dict[str, Any]]:
    """The same of a masked LM: one pass for each token of the text; tokens that were added have no score."""
    limit = model.ready.max_model_len
    encodings = await encode_all(fleet, model, texts, limit=limit + 1)
    for encoding in encodings:
        if len(encoding) > limit:
            raise RequestTooLong(len(encoding), 0, limit, param="inputs")
        if not encoding.rows_of(0):
            raise InvalidRequest("a text of at least one token is needed to score one", param="inputs")
    return [await _pseudo_one(model, encoding) for encoding in encodings]


async def _pseudo_one(model: ServedModel, encoding: Encoding) -> dict[str, Any]:
    said = iter(await model.engine.once([_masked(model, encoding, row) for row in encoding.rows_of(0)]))
    logprobs = [None if text is None else float(numbers(next(said))[0, 0]) for text in encoding.texts]
    return _body(encoding.tokens, logprobs)


def _masked(model: ServedModel, encoding: Encoding, row: int) -> wire.Once:
    """Ask for the token at this row, itself hidden."""
    mask_id = model.tokenizer.mask_id
    if mask_id is None:
        raise InvalidRequest("the model's tokenizer has no mask token", param="model")
    ids = [*encoding.ids[:row], mask_id, *encoding.ids[row + 1 :]]
    return once(replace(encoding, ids=ids), "mask", rows=[row], targets=[encoding.ids[row]])


def _body(tokens: list[str], logprobs: list[float | None]) -> dict[str, Any]:
    scored = [logprob for logprob in logprobs if logprob is not None]
    nll = -math.fsum(scored) / len(scored)
    return {"perplexity": math.exp(min(nll, 700.0)), "nll": nll, "tokens": tokens, "token_logprobs": logprobs}
