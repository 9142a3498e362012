"""POST /v1/tasks/fill-mask: the likeliest tokens for each mask of a text."""

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from trefoil import wire
from trefoil.api.deps import Models
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import Answer, says
from trefoil.api.scoring import Floats, Several, answered, encode_all, numbers, once
from trefoil.api.sse import json_response
from trefoil.api.text import StopText as SomeText
from trefoil.api.text import Text
from trefoil.errors import InvalidRequest
from trefoil_models.cutting import Encoding
from trefoil_models.tokenizer import Tokenizer

router = APIRouter(route_class=JsonRoute)

DEFAULT_TOP_K = 5
KNOWN_MASKS = ("[MASK]", "<mask>")
"""Whatever the model's own mask is, these are understood too."""


class Parameters(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    top_k: Annotated[int, Field(ge=1)] | None = None
    targets: SomeText | Several[SomeText] | None = None


class FillMaskRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    inputs: Text | Several[Text]
    parameters: Parameters = Parameters()
    model: str | None = None


class Candidate(Answer):
    score: float
    token: int
    token_str: str
    sequence: str


Filled = list[Candidate] | list[list[Candidate]]
"""The likeliest first; a list for each mask where there are several."""


@router.post("/v1/tasks/fill-mask", responses=says(Filled | list[Filled]))
async def fill(body: FillMaskRequest, request: Request, models: Models, model: str | None = None) -> Response:
    """Tokens with their scores for a mask; a list of lists where there are several masks."""
    served = models.find(body.model, model, task="fill-mask")
    texts = [own_mask(text, served.tokenizer) for text in _as_list(body.inputs)]
    encodings = await encode_all(models, served, texts)
    targets = _target_ids(served.tokenizer, _as_list(body.parameters.targets or []))
    top_k = body.parameters.top_k or DEFAULT_TOP_K
    if top_k > served.ready.vocab_size:
        raise InvalidRequest(f"top_k is more than the {served.ready.vocab_size} tokens", param="parameters.top_k")
    masks = [mask_rows(encoding, served.tokenizer) for encoding in encodings]
    asked = [
        once(encoding, "mask", rows=rows, targets=targets, top_k=top_k)
        for encoding, rows in zip(encodings, masks, strict=True)
    ]
    said = await answered(request, served.engine.once(asked))
    answers = [
        _answer(served.tokenizer, encoding, rows, _best(scores, targets, top_k))
        for encoding, rows, scores in zip(encodings, masks, said, strict=True)
    ]
    return json_response(answers[0] if isinstance(body.inputs, str) else answers)


def own_mask(text: str, tokenizer: Tokenizer) -> str:
    """The text with the model's own mask where it has another's. Raises InvalidRequest where there is no mask."""
    if tokenizer.mask is None:
        raise InvalidRequest("the model's tokenizer has no mask token", param="model")
    for mask in () if tokenizer.mask in text else KNOWN_MASKS:
        text = text.replace(mask, tokenizer.mask)
    if tokenizer.mask not in text:
        raise InvalidRequest(f"the text has no mask: write {tokenizer.mask} where a token is wanted", param="inputs")
    return text


def mask_rows(encoding: Encoding, tokenizer: Tokenizer) -> list[int]:
    """Where the masks stand. Raises InvalidRequest where the text was cut before the first."""
    rows = [row for row, token_id in enumerate(encoding.ids) if token_id == tokenizer.mask_id]
    if not rows:
        message = f"the first {len(encoding)} tokens, which are all that the model takes, have no {tokenizer.mask}"
        raise InvalidRequest(message, param="inputs")
    return rows


def _as_list(inputs: str | list[str]) -> list[str]:
    return [inputs] if isinstance(inputs, str) else inputs


def _target_ids(tokenizer: Tokenizer, targets: list[str]) -> list[int]:
    """The tokens that are meant; a word that is none stands for its first, as in transformers."""
    ids = []
    for target in targets:
        token_id = tokenizer.token_id(target)
        own = [token_id] if token_id is not None else tokenizer.encode_ids(target, add_special_tokens=False)
        if not own:
            raise InvalidRequest(f"{target[:40]!r} has no token", param="parameters.targets")
        ids.append(own[0])
    return sorted(set(ids))


def _best(scores: wire.Scores, targets: list[int], top_k: int) -> list[tuple[list[int], Floats]]:
    """For each mask the tokens and their probabilities, the likeliest first."""
    shares_RK = np.exp(numbers(scores))
    if not targets:
        return list(zip(scores.ids, shares_RK, strict=True))
    orders = np.argsort(-shares_RK, axis=-1, kind="stable")[:, :top_k]
    return [([targets[at] for at in order], row[order]) for row, order in zip(shares_RK, orders, strict=True)]


def _answer(
    tokenizer: Tokenizer, encoding: Encoding, rows: list[int], best: list[tuple[list[int], Floats]]
) -> list[Any]:
    lists = [
        [
            {
                "score": float(share),
                "token": token_id,
                "token_str": tokenizer.decode([token_id], skip_special_tokens=False),
                "sequence": _filled(tokenizer, encoding, row, token_id, is_only=len(rows) == 1),
            }
            for token_id, share in zip(ids, shares, strict=True)
        ]
        for row, (ids, shares) in zip(rows, best, strict=True)
    ]
    return lists[0] if len(lists) == 1 else lists


def _filled(tokenizer: Tokenizer, encoding: Encoding, row: int, token_id: int, *, is_only: bool) -> str:
    """The text with one mask filled; where others are left, they show, and so do the other special tokens."""
    ids = [*encoding.ids[:row], token_id, *encoding.ids[row + 1 :]]
    kept = [one for one in ids if one != tokenizer.pad_id]
    return tokenizer.decode(kept, skip_special_tokens=is_only)
