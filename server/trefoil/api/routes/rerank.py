"""POST /v1/rerank: documents by how well they answer a query, by a cross-encoder or by the nearness of vectors."""

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from trefoil.api.deps import Models, RequestId
from trefoil.api.fleet import Fleet, ServedModel
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import Answer, says
from trefoil.api.schemas import ReadTokens
from trefoil.api.scoring import Floats, answered, embed, embedding_limit, encode_all, score, sigmoid
from trefoil.api.sse import json_response
from trefoil.api.text import StopText

router = APIRouter(route_class=JsonRoute)

MAX_DOCUMENTS = 1000


class Document(BaseModel):
    model_config = ConfigDict(strict=True)

    text: StopText


class RerankRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    query: StopText
    documents: Annotated[list[StopText | Document], Field(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None
    model: str | None = None


class Ranked(Answer):
    index: int
    relevance_score: float
    document: Document | None = None


class Ranking(Answer):
    id: str
    model: str
    results: list[Ranked]
    usage: ReadTokens


@router.post("/v1/rerank", responses=says(Ranking))
async def rerank(
    body: RerankRequest, request: Request, models: Models, request_id: RequestId, model: str | None = None
) -> Response:
    """The documents' numbers with their scores, the best first."""
    served = models.find(body.model, model, task="rerank")
    texts = [one if isinstance(one, str) else one.text for one in body.documents]
    scores, num_tokens = await answered(request, relevance(models, served, body.query, texts))
    order = np.argsort(-scores, kind="stable")[: body.top_n]
    results = [_result(int(at), scores, texts, has_text=body.return_documents is not False) for at in order]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return json_response({"id": f"rerank-{request_id}", "model": served.name, "results": results, "usage": usage})


async def relevance(
    fleet: Fleet, model: ServedModel, query: str, texts: list[str], *, raw_scores: bool = False
) -> tuple[Floats, int]:
    """A score for each text, and how many tokens were read: a cross-encoder's, else the cosine with the query."""
    if is_cross_encoder(model):
        encodings = await encode_all(fleet, model, [(query, text) for text in texts])
        scores = np.concatenate(await score(model, encodings, head="class"))
        return (scores if raw_scores else sigmoid(scores)), sum(map(len, encodings))
    encodings = await encode_all(fleet, model, [query, *texts], limit=embedding_limit(model))
    vectors = await embed(model, encodings, normalize=True)
    return vectors[1:] @ vectors[0], sum(map(len, encodings))


def is_cross_encoder(model: ServedModel) -> bool:
    """Was it made to score how well a pair fits?"""
    return "text-classification" in model.tasks and len(model.labels) == 1


def _result(at: int, scores: Floats, texts: list[str], *, has_text: bool) -> dict[str, Any]:
    document = {"document": {"text": texts[at]}} if has_text else {}
    return {"index": at, "relevance_score": float(scores[at]), **document}
