"""POST /v1/tasks/text-classification: which labels a text, or a pair of texts, deserves."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from trefoil.api.deps import Models
from trefoil.api.fleet import ServedModel
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import Answer, says
from trefoil.api.scoring import Floats, Several, answered, encode_all, score, sigmoid, softmax
from trefoil.api.sse import json_response
from trefoil.api.text import Text

router = APIRouter(route_class=JsonRoute)

FUNCTIONS: dict[str, Callable[[Floats], Floats]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "none": lambda scores: scores,
}
FUNCTIONS_OF_PROBLEMS = {
    "regression": "none",
    "multi_label_classification": "sigmoid",
    "single_label_classification": "softmax",
}


class Pair(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    text: Text
    text_pair: Text | None = None


class Parameters(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    top_k: Annotated[int, Field(ge=1)] | None = None
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None


class TextClassificationRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    inputs: Text | Pair | Several[Text | Pair]
    parameters: Parameters = Parameters()
    model: str | None = None


class Label(Answer):
    label: str
    score: float


@router.post("/v1/tasks/text-classification", responses=says(list[list[Label]]))
async def classify(
    body: TextClassificationRequest, request: Request, models: Models, model: str | None = None
) -> Response:
    """Labels with their scores, the likeliest first, for each text."""
    served = models.find(body.model, model, task="text-classification")
    given = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    texts = [one if isinstance(one, str) else (one.text, one.text_pair) for one in given]
    encodings = await encode_all(models, served, texts)
    found = await answered(request, score(served, encodings, head="class"))
    apply = FUNCTIONS[body.parameters.function_to_apply or function_of(served)]
    return json_response([ranked(apply(scores), served.labels, body.parameters.top_k) for scores in found])


def function_of(model: ServedModel) -> str:
    """What makes this model's scores probabilities: by its problem_type, else by the number of its labels."""
    by_number = "softmax" if len(model.labels) > 1 else "sigmoid"
    return FUNCTIONS_OF_PROBLEMS.get(model.config.text("problem_type", ""), by_number)


def ranked(scores: Floats, labels: tuple[str, ...], top_k: int | None = None) -> list[dict[str, Any]]:
    """Labels with scores, the highest first."""
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [{"label": labels[number], "score": float(scores[number])} for number in order]
