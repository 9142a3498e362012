"""POST /v1/tasks/span-filling: what may stand in the gaps of a text, gaps of any length (Raffel et al., 1910.10683).

Gaps are `<extra_id_0>`, `<extra_id_1>`, ... or `___`. One search fills all of them; where an answer leaves a gap out or
makes it too long, it is gone on with from there, greedily. A span's score is the probability of its tokens in order.
Ways that fill the gaps with the same ids are one candidate, so there may be fewer than were asked for.
"""

import asyncio
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from trefoil import wire
from trefoil.api.deps import Models, while_connected
from trefoil.api.fleet import ServedModel
from trefoil.api.generation import begin, encode_prompt
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import Answer, says
from trefoil.api.schemas import DEFAULT_BEAMS, MAX_BEAMS, GenerationParams
from trefoil.api.sse import json_response
from trefoil.api.text import Text
from trefoil.api.text_stream import TextStream
from trefoil.errors import InvalidRequest, RequestTooLong, WrongTask

router = APIRouter(route_class=JsonRoute)

MAX_TEXTS = 256
DEFAULT_SPAN = 32
SENTINEL = re.compile(r"<extra_id_(\d+)>")
BLANK = re.compile(r"_{3,}")


class Parameters(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    num_candidates: Annotated[int, Field(ge=1, le=MAX_BEAMS)] = 1
    max_span_tokens: Annotated[int, Field(ge=1)] = DEFAULT_SPAN


class SpanFillingRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    inputs: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
    parameters: Parameters = Parameters()
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """What fills one gap: its ids and the log-probability of each."""

    ids: list[int]
    logprobs: list[float]

    @property
    def score(self) -> float:
        return math.exp(math.fsum(self.logprobs))


@dataclass(frozen=True, slots=True)
class Gapped:
    """A text with its gaps, marked as the model knows them, and the ids of it."""

    model: ServedModel
    pieces: list[str]
    ids: list[int]
    max_span: int

    @property
    def num_gaps(self) -> int:
        return len(self.pieces) - 1

    @property
    def sentinels(self) -> tuple[int, ...]:
        """Those of the gaps and the one that ends the last span."""
        return self.model.tokenizer.sentinel_ids[: self.num_gaps + 1]

    async def fill(self, beams: int) -> list[list[Span]]:
        """The best ways to fill all gaps, best first.

        The sentinel behind the last span ends a way; those that mark no end here would only end the same ways again.
        """
        budget = min(self.num_gaps * (self.max_span + 1) + 1, self.model.room(len(self.ids)))
        stops = tuple(dict.fromkeys((*self.model.eos_ids, self.sentinels[-1])))
        bans = dict.fromkeys({*self.model.tokenizer.sentinel_ids} - {*self.sentinels[1:]}, -math.inf)
        first = self.sentinels[0]
        params = self._params(budget, beams=beams, n=beams, forced_first_id=first, stop_ids=stops, logit_bias=bans)
        answers = await _answers(begin(self.model, self.ids, params, GenerationParams()), beams)
        found = await asyncio.gather(*(self._completed(self._spans(answer)) for answer in answers))
        found.sort(key=lambda spans: -math.fsum(lp for span in spans for lp in span.logprobs))
        return list({tuple(tuple(span.ids) for span in spans): spans for spans in found}.values())

    def _params(self, max_tokens: int, **changes: Any) -> wire.SamplingParams:
        stops = tuple(self.model.eos_ids)
        base = wire.SamplingParams(max_tokens=max_tokens, temperature=0.0, logprobs=0, stop_ids=stops)
        return msgspec.structs.replace(base, **changes)

    def _spans(self, answer: Span) -> list[Span]:
        """The leading spans that the answer fills in order and within bounds."""
        spans: list[Span] = []
        ends = {*self.model.tokenizer.sentinel_ids, *self.model.eos_ids}
        at = 0
        while len(spans) < self.num_gaps and at < len(answer.ids) and answer.ids[at] == self.sentinels[len(spans)]:
            end = next((n for n in range(at + 1, len(answer.ids)) if answer.ids[n] in ends), None)
            if end is None or end - at - 1 > self.max_span:
                break
            spans.append(Span(answer.ids[at + 1 : end], answer.logprobs[at + 1 : end]))
            at = end
        return spans

    async def _completed(self, spans: list[Span]) -> list[Span]:
        """The same with every gap filled, each of the missing ones greedily after those before it."""
        ends = (*self.model.eos_ids, *self.model.tokenizer.sentinel_ids)
        while len(spans) < self.num_gaps:
            said = [i for n, span in enumerate(spans) for i in (self.sentinels[n], *span.ids)]
            target = [*said, self.sentinels[len(spans)]]
            room = self.model.room(len(self.ids)) - len(target)
            if room < 1:
                raise RequestTooLong(len(self.ids), len(target), self.model.ready.max_model_len, param="inputs")
            params = self._params(min(self.max_span, room), stop_ids=tuple(dict.fromkeys(ends)))
            (answer,) = await _answers(begin(self.model, self.ids, params, GenerationParams(), target=target), 1)
            length = len(answer.ids) - (answer.ids[-1] in ends)
            spans = [*spans, Span(answer.ids[:length], answer.logprobs[:length])]
        return spans


class SpanAnswer(Answer):
    index: int
    text: str
    score: float


class FilledText(Answer):
    text: str
    score: float
    spans: list[SpanAnswer]


class SpanFillingAnswer(FilledText):
    """The best way to fill the gaps, and all that were asked for."""

    candidates: list[FilledText]


@router.post("/v1/tasks/span-filling", responses=says(SpanFillingAnswer | list[SpanFillingAnswer]))
async def fill(body: SpanFillingRequest, request: Request, models: Models, model: str | None = None) -> Response:
    """Fill the gaps of a text, or of each of a list."""
    served = models.find(body.model, model, task="span-filling")
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    gapped = [await _gapped(models, served, text, body.parameters) for text in texts]
    beams = max(body.parameters.num_candidates, DEFAULT_BEAMS)

    async def fill_all() -> list[list[list[Span]]]:
        return list(await asyncio.gather(*(one.fill(beams) for one in gapped)))

    found = await while_connected(request, fill_all(), lambda: None)
    answers = [_body(one, ways[: body.parameters.num_candidates]) for one, ways in zip(gapped, found, strict=True)]
    return json_response(answers[0] if isinstance(body.inputs, str) else answers)


async def _gapped(fleet: Any, model: ServedModel, text: str, parameters: Parameters) -> Gapped:
    """Raises InvalidRequest where there is no gap, or more than the model has sentinels."""
    sentinels = model.tokenizer.sentinel_ids
    if len(sentinels) < 2:
        raise WrongTask("the model's tokenizer has no sentinels to mark a gap with", param="model")
    pieces = _pieces(text)
    if len(pieces) > len(sentinels):  # one more than gaps: the last span needs an end
        raise InvalidRequest(
            f"{len(pieces) - 1} gaps are more than the model's {len(sentinels) - 1}",
            param="inputs",
        )
    marked = "".join(piece + f"<extra_id_{n}>" for n, piece in enumerate(pieces[:-1])) + pieces[-1]
    ids = await encode_prompt(fleet, model, marked, param="inputs")
    room = model.room(len(ids))
    if room < 3:
        raise RequestTooLong(len(ids), 0, model.ready.max_model_len, param="inputs")
    if parameters.max_span_tokens > room:
        raise InvalidRequest(
            f"max_span_tokens {parameters.max_span_tokens} is more than the {room} that the model can give",
            param="parameters.max_span_tokens",
        )
    return Gapped(model, pieces, ids, parameters.max_span_tokens)


def _pieces(text: str) -> list[str]:
    """The text around its gaps. Raises InvalidRequest where there is none, or where they are misnumbered."""
    numbers = [int(number) if len(number) < 9 else -1 for number in SENTINEL.findall(text)]
    if not numbers:
        pieces = BLANK.split(text)
        if len(pieces) < 2:
            raise InvalidRequest("there is no gap to fill: mark it with ___ or <extra_id_0>", param="inputs")
        return pieces
    if BLANK.search(text):
        raise InvalidRequest("mark all gaps with ___ or all with <extra_id_0>, <extra_id_1>, ...", param="inputs")
    if numbers != list(range(len(numbers))):
        raise InvalidRequest("number the gaps <extra_id_0>, <extra_id_1>, ... as they come", param="inputs")
    return SENTINEL.split(text)[::2]


async def _answers(stream: TextStream, count: int) -> list[Span]:
    """Ids and their log-probabilities of each answer."""
    answers = [Span([], []) for _ in range(count)]
    async for event in stream.events():
        if isinstance(event, wire.Tokens):
            answers[event.index].ids.extend(event.ids)
            answers[event.index].logprobs.extend(score.logprob for score in event.scores)
    return answers


def _body(gapped: Gapped, ways: Sequence[list[Span]]) -> dict[str, Any]:
    candidates = [_filled(gapped, spans) for spans in ways]
    return {**candidates[0], "candidates": candidates}


def _filled(gapped: Gapped, spans: list[Span]) -> dict[str, Any]:
    texts = [gapped.model.tokenizer.decode(span.ids) for span in spans]
    text = gapped.pieces[0]
    for piece, own in zip(gapped.pieces[1:], texts, strict=True):
        text = _joined(text, own) + piece
    return {
        "text": text,
        "score": math.exp(math.fsum(lp for span in spans for lp in span.logprobs)),
        "spans": [
            {"index": n, "text": own.strip(), "score": span.score}
            for n, (own, span) in enumerate(zip(texts, spans, strict=True))
        ],
    }


def _joined(before: str, span: str) -> str:
    """A span brings its leading space only where the text has none."""
    return before + (span.lstrip() if before[-1:].isspace() else span)
