"""POST /v1/completions: prompts as text or ids in, their continuations out, whole or streamed; echo scores a prompt."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from trefoil.api.deps import Models, while_connected
from trefoil.api.fleet import Fleet, ServedModel
from trefoil.api.forwarding import UpstreamRoute
from trefoil.api.generation import (
    begin,
    check_size,
    encode_prompt,
    new_id,
    prompt_logprobs_body,
    read_grammar,
    refuse_prompt_scores,
)
from trefoil.api.reference import Answer, says
from trefoil.api.schemas import MAX_TOP, GenerationParams, PromptScores, Rows, UsageAnswer, check_ids, usage_body
from trefoil.api.sse import DONE, ChunkWriter, EventStream, json_response
from trefoil.api.text import Text
from trefoil.api.text_stream import Piece, ScoredToken, TextStream, Usage
from trefoil.errors import InvalidRequest
from trefoil.wire import TokenScore
from trefoil_models.tokenizer import Tokenizer

router = APIRouter(route_class=UpstreamRoute)

DEFAULT_TOKENS = 16
MAX_PROMPTS = 256


class CompletionRequest(GenerationParams):
    prompt: (
        Text
        | Rows
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[Rows], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    suffix: str | None = None

    NEUTRAL: ClassVar = {**GenerationParams.NEUTRAL, "suffix": ("",)}

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Always a list of them."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt

    def check(self) -> None:
        """Raise InvalidRequest for fields that contradict each other or are not there yet."""
        self.refuse_unsupported()
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise InvalidRequest(f"best_of {self.best_of} must be at least n {self.n or 1}", param="best_of")
        if self.best_of is not None and self.use_beam_search:
            raise InvalidRequest("beam search chooses the best itself: leave best_of out", param="best_of")
        if self.best_of is not None and self.best_of > (self.n or 1) and self.stream:
            raise InvalidRequest("best_of cannot be streamed", param="best_of")


class CompletionScores(Answer):
    """Four lists side by side."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Answer):
    index: int
    text: str
    logprobs: CompletionScores | None
    finish_reason: Literal["stop", "length"] | None
    prompt_logprobs: PromptScores | None = None


class CompletionAnswer(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[CompletionChoice]
    usage: UsageAnswer


@dataclass(slots=True)
class Choice:
    """One continuation, growing."""

    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list)
    reason: str | None = None

    @property
    def mean_logprob(self) -> float:
        scores = [token.score.logprob for token in self.tokens]
        return sum(scores) / len(scores) if scores else float("-inf")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt under way."""

    ids: list[int]
    text: str
    stream: TextStream


@router.post(
    "/v1/completions",
    responses=says(CompletionAnswer, events="With `stream`: OpenAI's `text_completion` objects, then `[DONE]`."),
)
async def complete(body: CompletionRequest, request: Request, models: Models, model: str | None = None) -> Response:
    """Continue prompts."""
    body.check()
    served = models.find(body.model, model, task="text-generation")
    refuse_prompt_scores(served, body.prompt_logprobs, param="prompt_logprobs")
    refuse_prompt_scores(served, body.logprobs if body.echo else None, param="echo")
    prompts = await _begin(models, served, body)
    head = {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": served.name,
        "system_fingerprint": None,
    }
    close = partial(_close, prompts)
    if body.stream:
        return EventStream(_chunks(prompts, head, served.tokenizer, body), close)
    return json_response(await while_connected(request, _whole(prompts, head, served.tokenizer, body), close))


async def _begin(fleet: Fleet, model: ServedModel, body: CompletionRequest) -> list[Prompt]:
    """Submit every prompt, or none where one is refused."""
    grammar = await read_grammar(fleet, body.wanted)
    encoded = [await _encode(fleet, model, prompt) for prompt in body.prompts]
    asked = body.model_copy(update={"n": body.best_of or body.n, "prompt_logprobs": _prompt_scores_wanted(body)})
    logprobs = 0 if body.logprobs is None and body.best_of else body.logprobs
    sampling = partial(
        asked.sampling, model, param="prompt", default_tokens=DEFAULT_TOKENS, logprobs=logprobs, grammar=grammar
    )
    params = [sampling(len(ids)) for ids, _ in encoded]
    begun: list[Prompt] = []
    try:
        for (ids, text), own in zip(encoded, params, strict=True):
            begun.append(Prompt(ids, text, begin(model, ids, own, asked)))
    except BaseException:
        _close(begun)
        raise
    return begun


def _close(prompts: Sequence[Prompt]) -> None:
    for prompt in prompts:
        prompt.stream.close()


async def _encode(fleet: Fleet, model: ServedModel, prompt: str | list[int]) -> tuple[list[int], str]:
    if isinstance(prompt, str):
        check_size(model, prompt, param="prompt")
        return await encode_prompt(fleet, model, prompt, param="prompt"), prompt
    check_ids(prompt, model, param="prompt")
    return prompt, model.tokenizer.decode(prompt, skip_special_tokens=False)


def _prompt_scores_wanted(body: CompletionRequest) -> int | None:
    echoed = body.logprobs if body.echo else None
    wanted = [count for count in (echoed, body.prompt_logprobs) if count is not None]
    return max(wanted, default=None)


async def _whole(
    prompts: Sequence[Prompt], head: dict[str, Any], tokenizer: Tokenizer, body: CompletionRequest
) -> dict[str, Any]:
    gathered = await asyncio.gather(*(_gather(prompt, body) for prompt in prompts))
    choices = [
        {"index": index, **_choice(choice, prompt, tokenizer, body, is_first=True)}
        for index, (prompt, choice) in enumerate(
            (prompt, choice) for prompt, kept in zip(prompts, gathered, strict=True) for choice in kept
        )
    ]
    return {**head, "choices": choices, "usage": usage_body(_usage(prompts))}


async def _gather(prompt: Prompt, body: CompletionRequest) -> list[Choice]:
    """All answers to one prompt, the likeliest per token first where more were made than asked for."""
    choices = [Choice() for _ in range(body.best_of or body.n or 1)]
    async for piece in prompt.stream:
        choice = choices[piece.index]
        choice.text += piece.text
        choice.tokens += piece.scores
        choice.reason = piece.finish_reason
    if len(choices) > (body.n or 1):
        choices.sort(key=lambda choice: -choice.mean_logprob)
    return choices[: body.n or 1]


async def _chunks(
    prompts: Sequence[Prompt], head: dict[str, Any], tokenizer: Tokenizer, body: CompletionRequest
) -> AsyncIterator[bytes]:
    writer = ChunkWriter(head, has_usage=body.has_usage_chunk)
    begun: set[int] = set()
    async with aclosing(_merged(prompts)) as pieces:
        async for number, piece in pieces:
            index = number * (body.n or 1) + piece.index
            is_first = index not in begun
            if piece.text or piece.scores or piece.ending or is_first:
                begun.add(index)
                choice = Choice(piece.text, piece.scores, piece.finish_reason)
                part = _choice(choice, prompts[number], tokenizer, body, is_first=is_first)
                yield writer.chunk({"index": index, **part})
    if body.has_usage_chunk:
        yield writer.usage(usage_body(_usage(prompts)))
    yield DONE


async def _merged(prompts: Sequence[Prompt]) -> AsyncGenerator[tuple[int, Piece]]:
    """Pieces of several prompts as they come."""
    if len(prompts) == 1:
        async for piece in prompts[0].stream:
            yield 0, piece
        return
    queue: asyncio.Queue[tuple[int, Piece] | BaseException | None] = asyncio.Queue()

    async def pump(number: int) -> None:
        try:
            async for piece in prompts[number].stream:
                queue.put_nowait((number, piece))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    pumps = [asyncio.create_task(pump(number)) for number in range(len(prompts))]
    try:
        left = len(pumps)
        while left:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


def _choice(
    choice: Choice, prompt: Prompt, tokenizer: Tokenizer, body: CompletionRequest, *, is_first: bool
) -> dict[str, Any]:
    """The choice's body; the first chunk of an answer carries what is said of the prompt."""
    echo = prompt.text if body.echo else ""
    logprobs = None
    if body.logprobs is not None:
        logprobs = _Logprobs(tokenizer, body.logprobs)
        if body.echo and is_first:
            logprobs.add_prompt(prompt.ids, prompt.stream.prompt_scores)
        for token in choice.tokens:
            logprobs.add(token.token_id, token.score, len(echo) + token.offset)
    part: dict[str, Any] = {
        "text": echo + choice.text if is_first else choice.text,
        "logprobs": logprobs.body if logprobs else None,
        "finish_reason": choice.reason,
    }
    if body.prompt_logprobs is not None and is_first:
        scores = [TokenScore(s.logprob, s.rank, s.top[: body.prompt_logprobs]) for s in prompt.stream.prompt_scores]
        part["prompt_logprobs"] = prompt_logprobs_body(prompt.ids, scores, tokenizer)
    return part


class _Logprobs:
    """OpenAI's older logprobs object: four lists side by side."""

    def __init__(self, tokenizer: Tokenizer, num_top: int) -> None:
        self._tokenizer, self._num_top = tokenizer, num_top
        self.body: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def add_prompt(self, ids: Sequence[int], scores: Sequence[TokenScore]) -> None:
        """Every prompt token; the first has no score."""
        offset = 0
        for token_id, score in zip(ids, [None, *scores], strict=True):
            self.add(token_id, score, offset)
            offset += len(self.body["tokens"][-1])

    def add(self, token_id: int, score: TokenScore | None, offset: int) -> None:
        """One token."""
        token = self._tokenizer.token_text(token_id)
        top = None
        if score is not None:
            others = score.top[: self._num_top]
            top = {self._tokenizer.token_text(other): logprob for other, logprob in others} | {token: score.logprob}
        self.body["tokens"].append(token)
        self.body["token_logprobs"].append(score.logprob if score else None)
        self.body["top_logprobs"].append(top)
        self.body["text_offset"].append(offset)


def _usage(prompts: Sequence[Prompt]) -> Usage:
    return sum((prompt.stream.usage for prompt in prompts), Usage())
