"""POST /v1/chat/completions: messages in, the assistant's answer out, whole or streamed."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from trefoil.api.deps import Models, while_connected
from trefoil.api.fleet import Fleet, ServedModel
from trefoil.api.forwarding import UpstreamRoute
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
from trefoil.api.reference import Answer, says
from trefoil.api.schemas import MAX_TOP, GenerationParams, PromptScores, UsageAnswer, usage_body
from trefoil.api.sse import DONE, ChunkWriter, EventStream, json_response
from trefoil.api.text import Text
from trefoil.api.text_stream import ScoredToken as Scored
from trefoil.api.text_stream import TextStream
from trefoil.api.tools import CallReader, NamedTool, Said, Style, Tool, ToolCall, Tools, as_text, numbered
from trefoil.errors import InvalidRequest
from trefoil_models.tokenizer import Tokenizer

router = APIRouter(route_class=UpstreamRoute)


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[TextPart] | None = None
    name: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None
    tool_call_id: Text | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or [])

    def rendered(self, param: str) -> dict[str, Any]:
        """As templates know it: `developer` is OpenAI's newer word for `system`. Raises InvalidRequest."""
        calls = [call.rendered(f"{param}.tool_calls[{n}]") for n, call in enumerate(self.tool_calls or [])]
        more = {"name": self.name, "tool_calls": calls or None, "tool_call_id": self.tool_call_id}
        return {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.text,
            **{name: value for name, value in more.items() if value},
        }


def rendered(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A conversation as templates know it. Raises InvalidRequest."""
    return [message.rendered(f"messages[{at}]") for at, message in enumerate(messages)]


class ChatRequest(GenerationParams):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None

    NEUTRAL: ClassVar = {
        **GenerationParams.NEUTRAL,
        "functions": ([],),
        "function_call": ("none", "auto"),
    }

    @property
    def last_user_text(self) -> str:
        """Raises InvalidRequest where there is none."""
        texts = [message.text for message in self.messages if message.role == "user"]
        if not texts:
            raise InvalidRequest("this model reads the last user message, and there is none", param="messages")
        return texts[-1]

    def chosen_tools(self, style: Style) -> Tools | None:
        """What may be called, or must be. Raises InvalidRequest."""
        choice = self.tool_choice
        if not self.tools and (choice == "required" or isinstance(choice, NamedTool)):
            raise InvalidRequest("tool_choice: there are no tools to choose from", param="tool_choice")
        if not self.tools or choice == "none":
            return None
        functions = [tool.function for tool in self.tools]
        names = [function.name for function in functions]
        for at, name in enumerate(names):
            if name in names[:at]:
                raise InvalidRequest(f"there are two functions {name}", param=f"tools[{at}].function.name")
        if isinstance(choice, NamedTool):
            if choice.function.name not in names:
                raise InvalidRequest(
                    f"tool_choice: no tool is called {choice.function.name[:80]!r}", param="tool_choice.function.name"
                )
            names = [choice.function.name]
        if (form := self.wanted) is not None:
            message = f"{form.param} cannot be kept beside tools, unless tool_choice is none"
            raise InvalidRequest(message, param=form.param)
        is_forced = choice not in (None, "auto")
        if is_forced:
            self.check_beside("tool_choice")
        is_parallel = self.parallel_tool_calls is not False and not isinstance(choice, NamedTool)
        return Tools(functions, frozenset(names), style, is_forced=is_forced, is_parallel=is_parallel)

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
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Answer):
    index: int
    message: AssistantMessage
    logprobs: ChatScores | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None
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
    style = Style.of(served.tokenizer.chat_template)
    tools = body.chosen_tools(style)
    grammar = await read_grammar(models, body.wanted if tools is None else tools.wanted())
    ids = await _prompt(models, served, body, style, tools)
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
        return EventStream(_chunks(text, head, served.tokenizer, body, ids, tools), text.close)
    whole = _whole(text, head, served.tokenizer, body, ids, tools)
    return json_response(await while_connected(request, whole, text.close))


async def _prompt(fleet: Fleet, model: ServedModel, body: ChatRequest, style: Style, tools: Tools | None) -> list[int]:
    """Write the conversation and encode it.

    An encoder-decoder's encoder reads the last user message.
    """
    if model.start is not None:
        if tools is not None:
            raise InvalidRequest("this model reads the last user message alone: leave tools out", param="tools")
        return await encode_prompt(fleet, model, body.last_user_text, param="messages")
    messages = rendered(body.messages)
    messages = list(map(as_text, messages)) if style.is_told_by_us else messages
    chat = await write_chat(
        fleet,
        model,
        messages if tools is None else tools.noted(messages),
        add_generation_prompt=body.add_generation_prompt is not False,
        extra={**({} if tools is None else tools.for_template), **(body.chat_template_kwargs or {})},
    )
    return await encode_chat(fleet, model, chat)


async def _whole(
    text: TextStream,
    head: dict[str, Any],
    tokenizer: Tokenizer,
    body: ChatRequest,
    ids: list[int],
    tools: Tools | None,
) -> dict[str, Any]:
    contents = [""] * (body.n or 1)
    reasons: list[str | None] = [None] * len(contents)
    scores: list[list[Scored]] = [[] for _ in contents]
    async for piece in text:
        contents[piece.index] += piece.text
        scores[piece.index] += piece.scores
        reasons[piece.index] = piece.finish_reason
    said = [CallReader(tools).push(content, is_last=True) for content in contents]
    choices = [
        {
            "index": index,
            "message": _message(one),
            "logprobs": _logprobs(scores[index], tokenizer) if body.logprobs else None,
            "finish_reason": _reason(reasons[index], len(one.calls)),
            **_prompt_part(text, tokenizer, body, ids),
        }
        for index, one in enumerate(said)
    ]
    return {**head, "object": "chat.completion", "choices": choices, "usage": usage_body(text.usage)}


def _message(said: Said) -> dict[str, Any]:
    if not said.calls:
        return {"role": "assistant", "content": said.text, "refusal": None}
    return {"role": "assistant", "content": said.text or None, "refusal": None, "tool_calls": said.calls}


def _reason(reason: str | None, num_calls: int) -> str | None:
    return "tool_calls" if num_calls and reason == "stop" else reason


async def _chunks(
    text: TextStream,
    head: dict[str, Any],
    tokenizer: Tokenizer,
    body: ChatRequest,
    ids: list[int],
    tools: Tools | None,
) -> AsyncIterator[bytes]:
    writer = ChunkWriter({**head, "object": "chat.completion.chunk"}, has_usage=body.has_usage_chunk)
    readers: dict[int, CallReader] = {}
    async for piece in text:
        if piece.index not in readers:
            readers[piece.index] = CallReader(tools)
            first = _choice(piece.index, {"role": "assistant", "content": "", "refusal": None}, None, None)
            yield writer.chunk({**first, **_prompt_part(text, tokenizer, body, ids)})
        reader = readers[piece.index]
        said = reader.push(piece.text, is_last=piece.ending is not None)
        if said.text or piece.scores:
            logprobs = _logprobs(piece.scores, tokenizer) if body.logprobs else None
            yield writer.chunk(_choice(piece.index, {"content": said.text}, logprobs, None))
        if said.calls:
            calls = numbered(said.calls, reader.num_calls - len(said.calls))
            yield writer.chunk(_choice(piece.index, {"tool_calls": calls}, None, None))
        if piece.ending:
            yield writer.chunk(_choice(piece.index, {}, None, _reason(piece.finish_reason, reader.num_calls)))
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
