"""POST /v1/tokenize and /v1/detokenize: text to ids and back, as the model sees them."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from trefoil.api.deps import Models
from trefoil.api.fleet import Fleet, ServedModel
from trefoil.api.generation import write_chat
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import Answer
from trefoil.api.routes.openai.chat import Message, rendered
from trefoil.api.schemas import TokenId
from trefoil.api.scoring import check_tokenized
from trefoil.api.text import Text
from trefoil.errors import InvalidRequest
from trefoil_models.cutting import Encoding

router = APIRouter(route_class=JsonRoute)


class TokenizeRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    text: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    ids: list[TokenId]
    skip_special_tokens: bool = True


Place = Annotated[list[int], Field(min_length=2, max_length=2)]
"""Where a token begins in the text, and where it ends."""


class TokensAnswer(Answer):
    tokens: list[str]
    ids: list[int]
    offsets: list[Place]
    type_ids: list[int]
    count: int


class TextAnswer(Answer):
    text: str


@router.post("/v1/tokenize", response_model=TokensAnswer)
async def tokenize(body: TokenizeRequest, models: Models, model: str | None = None) -> dict[str, Any]:
    """A text's tokens, or those of a conversation after the chat template."""
    if (body.text is None) == (body.messages is None):
        raise InvalidRequest("give either text or messages", param="text" if body.text is None else "messages")
    served = models.find(body.model, model)
    found = await _encoded(models, served, body)
    return {
        "tokens": found.tokens,
        "ids": found.ids,
        "offsets": found.offsets,
        "type_ids": found.type_ids,
        "count": len(found.ids),
    }


async def _encoded(models: Fleet, served: ServedModel, body: TokenizeRequest) -> Encoding:
    """Of a conversation the special tokens it was written with, and those around it only where they are asked for."""
    tokenizer, text = served.tokenizer, body.text
    if text is None:
        chat = await write_chat(
            models,
            served,
            rendered(body.messages or []),
            add_generation_prompt=body.add_generation_prompt,
            extra=body.chat_template_kwargs,
        )
        check_tokenized([chat.text], param="messages")
        if not body.add_special_tokens:
            return await models.off_loop(len(chat.text), lambda: tokenizer.encode_chat(chat))
        text = chat.text
    check_tokenized([text], param="text")
    has_special = body.add_special_tokens is not False
    return await models.off_loop(len(text), lambda: tokenizer.encode(text, add_special_tokens=has_special))


@router.post("/v1/detokenize", response_model=TextAnswer)
async def detokenize(body: DetokenizeRequest, models: Models, model: str | None = None) -> dict[str, str]:
    """The text of ids."""
    tokenizer = models.find(body.model, model).tokenizer
    for token_id in body.ids:
        if token_id >= tokenizer.vocab_len:
            raise InvalidRequest(f"token id {token_id} is not below the tokenizer's {tokenizer.vocab_len}", param="ids")
    return {"text": tokenizer.decode(body.ids, skip_special_tokens=body.skip_special_tokens)}
