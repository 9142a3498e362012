"""From a prompt to its TextStream: what every generating route shares."""

import asyncio
import itertools
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from trefoil import wire
from trefoil.api.fleet import Fleet, ServedModel
from trefoil.api.grammar import Wanted
from trefoil.api.schemas import GenerationParams
from trefoil.api.text_stream import TextStream
from trefoil.errors import InvalidRequest, TextTooLong, WrongTask
from trefoil_models.chat_template import ChatTemplateError
from trefoil_models.family_chats import Chat
from trefoil_models.tokenizer import Tokenizer

TEMPLATE_TIMEOUT_S = 5.0
MOST_CHARS_A_TOKEN = 256
"""The longest tokens, which are lines and spaces, have half as many."""

_numbers = itertools.count()


def new_id(prefix: str) -> str:
    """An id as OpenAI writes them."""
    return f"{prefix}-{uuid.uuid4().hex}"


async def write_chat(
    fleet: Fleet,
    model: ServedModel,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    extra: Mapping[str, Any] | None,
) -> Chat:
    """The conversation as the model's template or family writes it. Raises InvalidRequest where it is refused.

    A template is a program from somebody else's folder: it runs in a sandbox, in a thread, and is not waited for long.
    """
    if (fault := model.tokenizer.chat_fault) is not None:
        why = f"the model {model.name} cannot chat, its chat template is broken ({fault}); it answers /v1/completions"
        raise WrongTask(why, param="model")
    try:
        rendering = fleet.in_thread(
            lambda: model.tokenizer.write_chat(messages, add_generation_prompt=add_generation_prompt, extra=extra)
        )
        return await asyncio.wait_for(rendering, TEMPLATE_TIMEOUT_S)
    except TimeoutError:
        message = f"the model's chat template did not finish in {TEMPLATE_TIMEOUT_S} s"
        raise InvalidRequest(message, param="messages") from None
    except ChatTemplateError as error:
        raise InvalidRequest(f"the model's chat template refused the messages: {error}", param="messages") from error


async def encode_chat(fleet: Fleet, model: ServedModel, chat: Chat) -> list[int]:
    """Its ids; it holds its special tokens already. Raises InvalidRequest as `encode_prompt` does, and TextTooLong."""
    check_size(model, chat.text, param="messages")
    ids = await fleet.off_loop(len(chat.text), lambda: model.tokenizer.chat_ids(chat))
    return begun(model, ids, param="messages")


async def read_grammar(fleet: Fleet, wanted: Wanted | None) -> str | None:
    """The grammar that the answer must follow, where there is one. Raises InvalidRequest."""
    return None if wanted is None else await fleet.in_thread(wanted.grammar)


async def encode_prompt(fleet: Fleet, model: ServedModel, text: str, *, param: str) -> list[int]:
    """The prompt's ids. Raises InvalidRequest as `begun` does."""
    ids = await fleet.off_loop(len(text), lambda: model.tokenizer.encode_ids(text))
    return begun(model, ids, param=param)


def check_size(model: ServedModel, text: str, *, param: str) -> None:
    """Raise TextTooLong for a prompt that no tokenizer makes short enough: to cut megabytes takes seconds."""
    limit = model.ready.max_model_len
    if len(text) > limit * MOST_CHARS_A_TOKEN:
        raise TextTooLong(len(text), limit, param=param)


def begun(model: ServedModel, ids: list[int], *, param: str) -> list[int]:
    """These ids, or for none the token that begins texts. Raises InvalidRequest where there is none."""
    if ids:
        return ids
    tokenizer = model.tokenizer
    start = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    if start is None:
        raise InvalidRequest("the prompt is empty and the model has no token to begin with", param=param)
    return [start]


def begin(
    model: ServedModel,
    ids: Sequence[int],
    params: wire.SamplingParams,
    request: GenerationParams,
    *,
    target: Sequence[int] = (),
) -> TextStream:
    """Submit to the engine; an encoder-decoder's answer goes on from `target`. Raises QueueFull, ModelLoading."""
    number, priority = f"{next(_numbers)}", request.priority or 0
    if model.start is None:
        command = wire.Generate(number, list(ids), params, priority, model.adapter_name)
    else:
        begun = [model.start.start_id, *target]
        command = wire.Generate(number, begun, params, priority, model.adapter_name, source=list(ids))
    skip = request.skip_special_tokens is not False
    return TextStream(model.engine.generate(command), model.tokenizer, stops=request.stops, skip_special_tokens=skip)


def refuse_prompt_scores(model: ServedModel, asked: int | None, *, param: str) -> None:
    """Raise where scores of the prompt are asked of a model whose encoder only reads it."""
    if asked is not None and model.start is not None:
        raise InvalidRequest("this model's encoder reads the prompt and does not score it: leave this out", param=param)


def prompt_logprobs_body(
    ids: Sequence[int], scores: Sequence[wire.TokenScore], tokenizer: Tokenizer
) -> list[dict[str, Any] | None]:
    """Null for the first token, then for each the likeliest ids and its own, with rank."""
    body: list[dict[str, Any] | None] = [None]
    for token_id, score in zip(ids[1:], scores, strict=True):
        entry = {
            str(other): _prompt_entry(tokenizer, other, logprob, rank)
            for rank, (other, logprob) in enumerate(score.top, start=1)
        }
        entry[str(token_id)] = _prompt_entry(tokenizer, token_id, score.logprob, score.rank)
        body.append(entry)
    return body


def _prompt_entry(tokenizer: Tokenizer, token_id: int, logprob: float, rank: int) -> dict[str, Any]:
    return {"logprob": logprob, "rank": rank, "decoded_token": tokenizer.token_text(token_id)}
