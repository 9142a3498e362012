"""POST /v1/tasks/reward: how much a reward model likes an answer."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from trefoil.api.deps import Models
from trefoil.api.fleet import ServedModel
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import Answer, says
from trefoil.api.scoring import Several, answered, score
from trefoil.api.sse import json_response
from trefoil.api.text import Text
from trefoil.errors import InvalidRequest
from trefoil_models.chat_template import ChatTemplateError
from trefoil_models.cutting import Encoding

router = APIRouter(route_class=JsonRoute)


class PlainAnswer(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    prompt: Text
    response: Text


class Turn(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    role: Text
    content: Text


class Chat(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    messages: Annotated[list[Turn], Field(min_length=1)]


class RewardRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    inputs: PlainAnswer | Chat | Several[PlainAnswer | Chat]
    model: str | None = None


class Score(Answer):
    score: float


@router.post("/v1/tasks/reward", responses=says(Score | list[Score]))
async def reward(body: RewardRequest, request: Request, models: Models, model: str | None = None) -> Response:
    """A score for an answer to a prompt, or for how a chat goes; a list of them for a list."""
    served = models.find(body.model, model, task="reward")
    given = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    texts = [encoded(served, one) for one in given]
    found = await answered(request, score(served, texts, head="class"))
    scores: list[dict[str, Any]] = [{"score": float(one[0])} for one in found]
    return json_response(scores if isinstance(body.inputs, list) else scores[0])


def encoded(model: ServedModel, given: PlainAnswer | Chat) -> Encoding:
    """The text as the reward model learnt to read texts: ended by the token that ends them."""
    tokenizer = model.tokenizer
    if isinstance(given, PlainAnswer):
        return _ended(model, tokenizer.encode(given.prompt + given.response))
    try:
        chat = tokenizer.write_chat([turn.model_dump() for turn in given.messages], add_generation_prompt=False)
    except ChatTemplateError as error:
        raise InvalidRequest(f"the chat template refuses this: {error}", param="inputs.messages") from error
    return _ended(model, tokenizer.encode_chat(chat))


def _ended(model: ServedModel, encoding: Encoding) -> Encoding:
    end_id = model.eos_ids[0] if model.eos_ids else model.tokenizer.eos_id
    if end_id is None or encoding.ids[-1:] == [end_id] or (encoding.ids and encoding.ids[-1] in model.eos_ids):
        return encoding
    end = Encoding([end_id], [""], [(0, 0)], [0], [None], [None])
    names = ("ids", "tokens", "offsets", "type_ids", "texts", "words")
    return Encoding(*(getattr(encoding, name) + getattr(end, name) for name in names))
