"""POST /v1/tasks/token-classification: what is named in a text, and where."""

from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from trefoil.api.deps import Models
from trefoil.api.entities import Strategy, Tagger, merged
from trefoil.api.fleet import Fleet, ServedModel
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import Answer, says
from trefoil.api.scoring import Several, answered, check_windowed, encode_all, score, softmax, text_limit
from trefoil.api.sse import json_response
from trefoil.api.text import Text
from trefoil.errors import InvalidRequest
from trefoil_models.cutting import Encoding, TooLittleRoomError, windows

router = APIRouter(route_class=JsonRoute)


class Parameters(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    aggregation_strategy: Strategy | None = None
    ignore_labels: list[str] | None = None
    stride: Annotated[int, Field(ge=0)] | None = None


class TokenClassificationRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    inputs: Text | Several[Text]
    parameters: Parameters = Parameters()
    model: str | None = None


class EntityAnswer(Answer):
    """`entity_group` where tokens were joined, `entity` with its token's `index` where not."""

    entity_group: str | None = None
    entity: str | None = None
    score: float
    index: int | None = None
    word: str
    start: int
    end: int


@router.post("/v1/tasks/token-classification", responses=says(list[EntityAnswer] | list[list[EntityAnswer]]))
async def tag(body: TokenClassificationRequest, request: Request, models: Models, model: str | None = None) -> Response:
    """The entities of a text, or of each of a list; a long text is cut, or with `stride` read in windows."""
    served = models.find(body.model, model, task="token-classification")
    parameters = body.parameters
    if parameters.stride is not None and parameters.aggregation_strategy == "none":
        raise InvalidRequest("stride needs another aggregation_strategy than none", param="parameters.stride")
    ignored = ["O"] if parameters.ignore_labels is None else parameters.ignore_labels
    strategy = parameters.aggregation_strategy or "none"
    tagger = Tagger(served.tokenizer, served.labels, strategy, frozenset(ignored))
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    if parameters.stride is not None:
        check_windowed(texts, param="inputs")
    parts = [await _windows(models, served, text, parameters.stride) for text in texts]
    flat = [window for part in parts for window in part]
    said = iter(await answered(request, score(served, flat, head="tag")))
    answers = []
    for text, part in zip(texts, parts, strict=True):
        found = [entity for window in part for entity in tagger.entities(text, window, softmax(next(said)))]
        answers.append([entity.body() for entity in (merged(found) if len(part) > 1 else found)])
    return json_response(answers[0] if isinstance(body.inputs, str) else answers)


async def _windows(fleet: Fleet, model: ServedModel, text: str, stride: int | None) -> list[Encoding]:
    limit = text_limit(model)
    if stride is None:
        return await encode_all(fleet, model, [text], limit=limit)

    def cut() -> list[Encoding]:
        return list(windows(model.tokenizer.encode(text), limit, text=0, stride=stride))

    try:
        return await fleet.off_loop(len(text), cut)
    except TooLittleRoomError as error:
        raise InvalidRequest(str(error), param="parameters.stride") from error
