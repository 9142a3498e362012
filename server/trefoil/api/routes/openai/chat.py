"""POST /v1/chat/completions: messages in, the assistant's answer out, whole or streamed."""

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from trefoil.api.deps import Models, while_connected
from trefoil.api.fleet import Fleet, ServedModel
from trefoil.api.generation import (
    begin,
    encode_chat,
    encode_prompt,
    new_id,
    prompt_logprobs_body,
    read_grammar,
    refuse_prompt_scores,
    write_chat,
)
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import Answer, says
from trefoil.api.schemas import MAX_TOP, GenerationParams, PromptScores, UsageAnswer, usage_body
from trefoil.api.sse import DONE, ChunkWriter, EventStream, json_response
from trefoil.api.text import Text
from trefoil.api.text_stream import ScoredToken as Scored
from trefoil.api.text_stream import TextStream
from trefoil.errors import InvalidRequest
from trefoil_models.tokenizer import Tokenizer

router = APIRouter(route_class=JsonRoute)


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[TextPart] | None = None
    name: Text | None = None

    def rendered(self) -> dict[str, Any]:
        """As templates know it: `developer` is OpenAI's newer word for `system`."""
        content = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content or [])
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content, **({"name": self.name} if self.name else {})}


class ChatRequest(GenerationParams):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None

    NEUTRAL: ClassVar = {
        **GenerationParams.NEUTRAL,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
    }

    @property
    def last_user_text(self) -> str:
        """Raises InvalidRequest where there is none."""
        texts: list[str] = [message.rendered()["content"] for message in self.messages if message.role == "user"]
        if not texts:
            raise InvalidRequest("this model reads the last user message, and there is none", param="messages")
        return texts[-1]

    def checked(self) -> "ChatRequest":
        """Raise InvalidRequest for fields that contradict each other or are not there yet."""
        self.refuse_unsupported()
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        for at, message in enumerate(self.messages):
            if message.content is None and message.role != "assistant":
                raise InvalidRequest(f"a {message.role} message needs content", param=f"messages[{at}].content")
        return self.model_copy(update={"max_tokens": self.max_completion_tokens or self.max_tokens})


class ScoredText(Answer):
    token: str
    logprob: float
    bytes: list[int]


class ScoredToken(ScoredText):
    top_logprobs: list[ScoredText]


class ChatScores(Answer):
    content: list[ScoredToken]
    refusal: None


class AssistantMessage(Answer):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Answer):
    index: int
    message: AssistantMessage
    logprobs: ChatScores | None
    finish_reason: Literal["stop", "length"] | None
    prompt_logprobs: PromptScores | None = None


class ChatAnswer(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[ChatChoice]
    usage: UsageAnswer


@router.post(
    "/v1/chat/completions",
    responses=says(ChatAnswer, events="With `stream`: OpenAI's `chat.completion.chunk` objects, then `[DONE]`."),
)
async def chat(body: ChatRequest, request: Request, models: Models, model: str | None = None) -> Response:
    """Answer a conversation."""
    body = body.checked()
    served = models.find(body.model, model, task="text-generation")
    refuse_prompt_scores(served, body.prompt_logprobs, param="prompt_logprobs")
    grammar = await read_grammar(models, body.wanted)
    ids = await _prompt(models, served, body)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = body.sampling(
        served,
        len(ids),
        param="messages",
        default_tokens=None,
        logprobs=logprobs,
        length_param="max_completion_tokens" if body.max_completion_tokens else "max_tokens",
        grammar=grammar,
    )
    text = begin(served, ids, params, body)
    head = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": served.name, "system_fingerprint": None}
    if body.stream:
        return EventStream(_chunks(text, head, served.tokenizer, body, ids), text.close)
    return json_response(await while_connected(request, _whole(text, head, served.tokenizer, body, ids), text.close))


async def _prompt(fleet: Fleet, model: ServedModel, body: ChatRequest) -> list[int]:
    """Write the conversation and encode it.

    An encoder-decoder's encoder reads the last user message.
    """
    if model.start is not None:
        return await encode_prompt(fleet, model, body.last_user_text, param="messages")
    chat = await write_chat(
        fleet,
        model,
        [message.rendered() for message in body.messages],
        add_generation_prompt=body.add_generation_prompt is not False,
        extra=body.chat_template_kwargs,
    )
    return await encode_chat(fleet, model, chat)


async def _whole(
    text: TextStream, head: dict[str, Any], tokenizer: Tokenizer, body: ChatRequest, ids: list[int]
) -> dict[str, Any]:
    contents = [""] * (body.n or 1)
    reasons: list[str | None] = [None] * len(contents)
    scores: list[list[Scored]] = [[] for _ in contents]
    async for piece in text:
        contents[piece.index] += piece.text
        scores[piece.index] += piece.scores
        reasons[piece.index] = piece.finish_reason
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": _logprobs(scores[index], tokenizer) if body.logprobs else None,
            "finish_reason": reasons[index],
            **_prompt_part(text, tokenizer, body, ids),
        }
        for index, content in enumerate(contents)
    ]
    return {**head, "object": "chat.completion", "choices": choices, "usage": usage_body(text.usage)}


async def _chunks(
    text: TextStream, head: dict[str, Any], tokenizer: Tokenizer, body: ChatRequest, ids: list[int]
) -> AsyncIterator[bytes]:
    writer = ChunkWriter({**head, "object": "chat.completion.chunk"}, has_usage=body.has_usage_chunk)
    begun: set[int] = set()
    async for piece in text:
        if piece.index not in begun:
            begun.add(piece.index)
            first = _choice(piece.index, {"role": "assistant", "content": "", "refusal": None}, None, None)
            yield writer.chunk({**first, **_prompt_part(text, tokenizer, body, ids)})
        if piece.text or piece.scores:
            logprobs = _logprobs(piece.scores, tokenizer) if body.logprobs else None
            yield writer.chunk(_choice(piece.index, {"content": piece.text}, logprobs, None))
        if piece.ending:
            yield writer.chunk(_choice(piece.index, {}, None, piece.finish_reason))
    if body.has_usage_chunk:
        yield writer.usage(usage_body(text.usage))
    yield DONE


def _choice(index: int, delta: dict[str, Any], logprobs: Any, reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _prompt_part(text: TextStream, tokenizer: Tokenizer, body: ChatRequest, ids: list[int]) -> dict[str, Any]:
    if body.prompt_logprobs is None:
        return {}
    return {"prompt_logprobs": prompt_logprobs_body(ids, text.prompt_scores, tokenizer)}


def _logprobs(tokens: list[Scored], tokenizer: Tokenizer) -> dict[str, Any]:
    content = [
        {
            **_entry(token.token_id, token.score.logprob, tokenizer),
            "top_logprobs": [_entry(other, logprob, tokenizer) for other, logprob in token.score.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _entry(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": logprob,
        "bytes": list(tokenizer.token_bytes(token_id)),
    }
