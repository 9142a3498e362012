"""POST /v1/tasks/text-generation: generation in Hugging Face's shape, for `InferenceClient.text_generation`."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from trefoil import wire
from trefoil.api.deps import Models, while_connected
from trefoil.api.fleet import Fleet, ServedModel
from trefoil.api.forwarding import completed
from trefoil.api.generation import begin, check_size, encode_prompt, read_grammar
from trefoil.api.grammar import Schema, Wanted, of_regex, of_schema
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import Answer, says
from trefoil.api.schemas import INT64, GenerationParams
from trefoil.api.sse import EventStream, event, json_response
from trefoil.api.text import StopText, Text
from trefoil.api.text_stream import Piece, TextStream
from trefoil.api.upstream import RemoteModel
from trefoil.errors import InvalidRequest, NotImplementedHere, RefusedUpstream

router = APIRouter(route_class=JsonRoute)

DEFAULT_TOKENS = 100
MAX_TEXTS = 256
UNKNOWN_ELSEWHERE = (
    "details",
    "decoder_input_details",
    "truncate",
    "top_n_tokens",
    "grammar",
    "typical_p",
    "no_repeat_ngram_size",
)
"""What servers in general know nothing of, and would not say so."""
NAMES_ELSEWHERE = {"prompt": "inputs", "max_tokens": "parameters.max_new_tokens"}
ENDINGS = {"eos": "eos_token", "stop": "stop_sequence", "length": "length"}


class Grammar(BaseModel):
    """TGI's way to say what the text must look like."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["json", "json_schema", "regex"]
    value: Schema | Text

    @property
    def wanted(self) -> Wanted:
        """Raises InvalidRequest."""
        param = "parameters.grammar.value"
        if self.type == "regex":
            if not isinstance(self.value, str):
                raise InvalidRequest(f"{param}: must be a regular expression", param=param)
            return of_regex(self.value, param)
        schema = self.value
        if self.type == "json_schema" and isinstance(schema, dict):
            param, schema = f"{param}.schema", schema.get("schema", {})
        if not isinstance(schema, dict):
            raise InvalidRequest(f"{param}: must be a JSON schema, which is an object", param=param)
        return of_schema(schema, param)


class Parameters(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Field(gt=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=INT64)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, lt=INT64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=INT64)] | None = None
    stop: Annotated[list[StopText], Field(max_length=4)] | None = None
    return_full_text: bool | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    truncate: Annotated[int, Field(ge=1)] | None = None
    top_n_tokens: Annotated[int, Field(ge=0, le=5)] | None = None
    grammar: Grammar | None = None
    # known, and refused by name
    adapter_id: str | None = None
    best_of: int | None = None
    watermark: bool | None = None

    def refuse_unsupported(self) -> None:
        """Raise NotImplementedHere for what asks for something that is not there."""
        for name, neutral in (("adapter_id", None), ("best_of", 1), ("watermark", False)):
            if getattr(self, name) not in (None, neutral):
                raise NotImplementedHere(f"parameters.{name}")

    @property
    def wanted(self) -> Wanted | None:
        """What the text must look like. Raises InvalidRequest where it could not be kept."""
        if self.grammar is not None and self.no_repeat_ngram_size:
            raise InvalidRequest(
                "no_repeat_ngram_size cannot be kept beside a grammar", param="parameters.no_repeat_ngram_size"
            )
        return None if self.grammar is None else self.grammar.wanted

    @property
    def is_sampled(self) -> bool:
        """Greedy unless asked otherwise, by the flag or by a parameter that only sampling has."""
        if self.do_sample is not None:
            return self.do_sample
        return any(value is not None for value in (self.temperature, self.top_k, self.top_p, self.typical_p))

    def generation(self) -> GenerationParams:
        """The same in OpenAI's words."""
        return GenerationParams(
            max_tokens=self.max_new_tokens,
            temperature=None if self.is_sampled else 0.0,
            top_k=self.top_k,
            top_p=self.top_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            seed=self.seed,
            stop=self.stop,
        )


class TextGenerationRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    inputs: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
    parameters: Parameters = Parameters()
    model: str | None = None
    stream: bool | None = None


class Token(Answer):
    id: int
    text: str
    logprob: float
    special: bool


class PromptToken(Answer):
    id: int
    text: str
    logprob: float | None


class Details(Answer):
    finish_reason: Literal["eos_token", "stop_sequence", "length"]
    generated_tokens: int
    seed: int | None
    prefill: list[PromptToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | None
    best_of_sequences: None


class GeneratedText(Answer):
    generated_text: str
    details: Details | None = None


@router.post(
    "/v1/tasks/text-generation",
    responses=says(
        list[GeneratedText] | list[list[GeneratedText]],
        events="With `stream`: an object a token with `token`, and in the last one `generated_text` and `details`.",
    ),
)
async def generate(body: TextGenerationRequest, request: Request, models: Models, model: str | None = None) -> Response:
    """Continue a text, or each of a list."""
    body.parameters.refuse_unsupported()
    if body.stream and not isinstance(body.inputs, str):
        raise InvalidRequest("a stream continues one text, not a list", param="inputs")
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    remote = models.pick(body.model, model, task="text-generation")
    if isinstance(remote, RemoteModel):
        return await _elsewhere(body, request, remote, texts)
    served = models.find(body.model, model, task="text-generation")
    encoded = [await _encode(models, served, text, body.parameters) for text in texts]
    grammar = await read_grammar(models, body.parameters.wanted)
    params = [_sampling(body, served, len(ids), grammar) for ids in encoded]
    streams: list[TextStream] = []

    def close() -> None:
        for stream in streams:
            stream.close()

    try:
        for ids, own in zip(encoded, params, strict=True):
            streams.append(begin(served, ids, own, body.parameters.generation()))
    except BaseException:
        close()
        raise
    if body.stream:
        return EventStream(_events(streams[0], served, encoded[0], texts[0], body.parameters), close)

    async def whole() -> list[dict[str, Any]]:
        return await asyncio.gather(
            *(
                _whole(stream, served, ids, text, body.parameters)
                for stream, ids, text in zip(streams, encoded, texts, strict=True)
            )
        )

    answers = await while_connected(request, whole(), close)
    return json_response(answers if isinstance(body.inputs, str) else [[answer] for answer in answers])


async def _elsewhere(body: TextGenerationRequest, request: Request, model: RemoteModel, texts: list[str]) -> Response:
    """From another server's completions, which are text alone: what asks for tokens is refused by name."""
    parameters = body.parameters
    for name in UNKNOWN_ELSEWHERE:
        if getattr(parameters, name):
            raise NotImplementedHere(f"parameters.{name}")
    if body.stream:
        raise NotImplementedHere("stream")
    asked = {
        **({} if parameters.temperature is None else {"temperature": parameters.temperature}),
        **parameters.generation().model_dump(exclude_none=True),
        "prompt": texts,
        "max_tokens": parameters.max_new_tokens or DEFAULT_TOKENS,
    }
    try:
        found = await completed(request, model, asked, count=len(texts))
    except RefusedUpstream as error:
        error.param = error.param and NAMES_ELSEWHERE.get(error.param, f"parameters.{error.param}")
        raise
    begin = texts if parameters.return_full_text else [""] * len(texts)
    answers = [[{"generated_text": text + new}] for text, new in zip(begin, found, strict=True)]
    return json_response(answers[0] if isinstance(body.inputs, str) else answers)


async def _encode(fleet: Fleet, model: ServedModel, text: str, parameters: Parameters) -> list[int]:
    if not parameters.truncate:
        check_size(model, text, param="inputs")
    ids = await encode_prompt(fleet, model, text, param="inputs")
    return ids[-parameters.truncate :] if parameters.truncate else ids


def _sampling(
    body: TextGenerationRequest, model: ServedModel, prompt_len: int, grammar: str | None
) -> wire.SamplingParams:
    parameters = body.parameters
    wants_scores = bool(body.stream or parameters.details)
    asked = parameters.generation()
    if parameters.decoder_input_details:
        asked = asked.model_copy(update={"prompt_logprobs": 0})
    if parameters.is_sampled and parameters.temperature is not None:
        asked = asked.model_copy(update={"temperature": parameters.temperature})
    return asked.sampling(
        model,
        prompt_len,
        param="inputs",
        default_tokens=DEFAULT_TOKENS,
        logprobs=(parameters.top_n_tokens or 0) if wants_scores else None,
        length_param="parameters.max_new_tokens",
        grammar=grammar,
    )


async def _whole(
    stream: TextStream, model: ServedModel, ids: list[int], prompt: str, parameters: Parameters
) -> dict[str, Any]:
    text, tokens, top_tokens = "", [], []
    ending = "length"
    async for piece in stream:
        text += piece.text
        ending = ENDINGS[piece.ending] if piece.ending else ending
        tokens += [_token(model, scored.token_id, scored.score.logprob) for scored in piece.scores]
        top_tokens += [[_token(model, other, logprob) for other, logprob in s.score.top] for s in piece.scores]
    answer: dict[str, Any] = {"generated_text": prompt + text if parameters.return_full_text else text}
    if parameters.details:
        answer["details"] = {
            "finish_reason": ending,
            "generated_tokens": stream.usage.completion,
            "seed": parameters.seed,
            "prefill": _prefill(model, ids, stream) if parameters.decoder_input_details else [],
            "tokens": tokens,
            "top_tokens": top_tokens if parameters.top_n_tokens else None,
            "best_of_sequences": None,
        }
    return answer


async def _events(
    stream: TextStream, model: ServedModel, ids: list[int], prompt: str, parameters: Parameters
) -> AsyncIterator[bytes]:
    text, last = "", 0
    async for piece in stream:
        text += piece.text
        last = piece.ids[-1] if piece.ids else last
        if not (piece.ids or piece.text or piece.ending):
            continue
        payload = _event(piece, model, last)
        if piece.ending:
            payload["generated_text"] = prompt + text if parameters.return_full_text else text
            payload["details"] = {
                "finish_reason": ENDINGS[piece.ending],
                "generated_tokens": stream.usage.completion,
                "input_length": len(ids),
                "seed": parameters.seed,
            }
        yield event({"index": stream.usage.completion, **payload})


def _event(piece: Piece, model: ServedModel, token_id: int) -> dict[str, Any]:
    scored = next((s for s in piece.scores if s.token_id == token_id), None)
    token = _token(model, token_id, scored.score.logprob if scored else 0.0)
    top = [_token(model, other, logprob) for other, logprob in scored.score.top] if scored else []
    return {
        "token": {**token, "text": piece.text},
        "top_tokens": top or None,
        "generated_text": None,
        "details": None,
    }


def _prefill(model: ServedModel, ids: list[int], stream: TextStream) -> list[dict[str, Any]]:
    logprobs = [None, *(score.logprob for score in stream.prompt_scores)]
    return [
        {"id": token_id, "text": model.tokenizer.token_text(token_id), "logprob": logprob}
        for token_id, logprob in zip(ids, logprobs, strict=True)
    ]


def _token(model: ServedModel, token_id: int, logprob: float) -> dict[str, Any]:
    tokenizer = model.tokenizer
    return {
        "id": token_id,
        "text": tokenizer.token_text(token_id),
        "logprob": logprob,
        "special": token_id in tokenizer.special_ids,
    }
