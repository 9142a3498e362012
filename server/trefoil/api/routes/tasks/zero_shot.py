"""POST /v1/tasks/zero-shot-classification: which of the caller's labels fit a text, by a model that knows entailment.

Each label makes a hypothesis; how much the text entails it is the label's score.
"""

from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from trefoil.api.deps import Models
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import says
from trefoil.api.routes.tasks.text_classification import Label
from trefoil.api.scoring import Floats, Several, answered, encode_all, score, softmax, text_limit
from trefoil.api.sse import json_response
from trefoil.api.text import StopText as SomeText
from trefoil.errors import InvalidRequest

router = APIRouter(route_class=JsonRoute)

DEFAULT_TEMPLATE = "This example is {}."
MAX_PAIRS = 4096


class Parameters(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    candidate_labels: SomeText | Several[SomeText]
    hypothesis_template: SomeText | None = None
    multi_label: bool | None = None

    @property
    def labels(self) -> list[str]:
        """A string names them between commas."""
        if isinstance(self.candidate_labels, list):
            return self.candidate_labels
        return [label.strip() for label in self.candidate_labels.split(",") if label.strip()]


class ZeroShotRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    inputs: SomeText | Several[SomeText]
    parameters: Parameters
    model: str | None = None


@router.post("/v1/tasks/zero-shot-classification", responses=says(list[Label] | list[list[Label]]))
async def classify(body: ZeroShotRequest, request: Request, models: Models, model: str | None = None) -> Response:
    """The labels with their scores, the likeliest first, for a text or each of a list."""
    served = models.find(body.model, model, task="zero-shot-classification")
    labels = body.parameters.labels
    template = body.parameters.hypothesis_template or DEFAULT_TEMPLATE
    if not labels or template.replace("{}", "") == template:
        param = "hypothesis_template" if labels else "candidate_labels"
        raise InvalidRequest(f"{param} must name {'a place {}' if labels else 'a label'}", param=f"parameters.{param}")
    texts = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    if len(texts) * len(labels) > MAX_PAIRS:
        raise InvalidRequest(f"texts times labels must be at most {MAX_PAIRS}", param="parameters.candidate_labels")
    pairs = [(text, template.replace("{}", label)) for text in texts for label in labels]
    encodings = await encode_all(models, served, pairs, cut="first", limit=text_limit(served))
    logits = np.stack(await answered(request, score(served, encodings, head="class")))
    entails = next(n for n, label in enumerate(served.labels) if label.lower().startswith("entail"))
    is_multi = bool(body.parameters.multi_label) or len(labels) == 1
    answers = [
        _ranked(labels, _shares(own_KC, entails, is_multi=is_multi))
        for own_KC in logits.reshape(len(texts), len(labels), -1)
    ]
    return json_response(answers if isinstance(body.inputs, list) else answers[0])


def _shares(logits_KC: Floats, entails: int, *, is_multi: bool) -> Floats:
    """Of each label for itself against its contradiction, or of all labels against each other."""
    if is_multi:
        contradicts = -1 if entails == 0 else 0
        return softmax(logits_KC[:, [contradicts, entails]])[:, 1]
    return softmax(logits_KC[:, entails])


def _ranked(labels: list[str], shares_K: Floats) -> list[dict[str, Any]]:
    order = np.argsort(-shares_K, kind="stable")
    return [{"label": labels[number], "score": float(shares_K[number])} for number in order]
