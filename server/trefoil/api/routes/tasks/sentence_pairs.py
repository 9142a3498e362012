"""POST /v1/tasks/next-sentence-prediction and sentence-order-prediction: do two texts belong together as they stand?"""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from trefoil.api.deps import Models
from trefoil.api.fleet import Fleet
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import says
from trefoil.api.routes.tasks.text_classification import Label, ranked
from trefoil.api.scoring import Several, answered, encode_all, score, softmax
from trefoil.api.sse import json_response
from trefoil.api.text import StopText as SomeText

router = APIRouter(route_class=JsonRoute)

LABELS = {
    "next-sentence-prediction": ("IS_NEXT", "NOT_NEXT"),
    "sentence-order-prediction": ("IN_ORDER", "SWAPPED"),
}
"""Label 0 first, as the checkpoints have it."""


class SentencePair(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    text: SomeText
    text_pair: SomeText


class NoParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SentencePairRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    inputs: SentencePair | Several[SentencePair]
    parameters: NoParameters | None = None
    model: str | None = None


@router.post("/v1/tasks/next-sentence-prediction", responses=says(list[list[Label]]))
async def next_sentence(
    body: SentencePairRequest, request: Request, models: Models, model: str | None = None
) -> Response:
    """Whether the second text follows the first."""
    return json_response(await _judge("next-sentence-prediction", body, request, models, model))


@router.post("/v1/tasks/sentence-order-prediction", responses=says(list[list[Label]]))
async def sentence_order(
    body: SentencePairRequest, request: Request, models: Models, model: str | None = None
) -> Response:
    """Whether the texts stand in order."""
    return json_response(await _judge("sentence-order-prediction", body, request, models, model))


async def _judge(
    task: str, body: SentencePairRequest, request: Request, models: Fleet, model: str | None
) -> list[list[dict[str, Any]]]:
    served = models.find(body.model, model, task=task)
    pairs = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    encodings = await encode_all(models, served, [(pair.text, pair.text_pair) for pair in pairs])
    found = await answered(request, score(served, encodings, head="pair"))
    return [ranked(softmax(scores), LABELS[task]) for scores in found]
