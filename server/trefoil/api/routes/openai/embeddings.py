"""POST /v1/embeddings: one vector a text, in OpenAI's shape; pooled as the model's folder says."""

import base64
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from trefoil.api.deps import Models
from trefoil.api.fleet import Fleet, ServedModel
from trefoil.api.forwarding import UpstreamRoute
from trefoil.api.reference import Answer, says
from trefoil.api.schemas import ReadTokens, Rows, check_ids
from trefoil.api.scoring import Floats, answered, embed, embedding_limit, encode_all, unit
from trefoil.api.sse import json_response
from trefoil.api.text import StopText
from trefoil.errors import InvalidRequest, RequestTooLong
from trefoil_models.cutting import Encoding

router = APIRouter(route_class=UpstreamRoute)

MAX_INPUTS = 2048
Dimensions = Annotated[int, Field(ge=1)]


class EmbeddingsRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    input: (
        StopText
        | Annotated[list[StopText], Field(min_length=1, max_length=MAX_INPUTS)]
        | Rows
        | Annotated[list[Rows], Field(min_length=1, max_length=MAX_INPUTS)]
    )
    model: str | None = None
    dimensions: Dimensions | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


class Embedding(Answer):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsAnswer(Answer):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: ReadTokens


@router.post("/v1/embeddings", responses=says(EmbeddingsAnswer))
async def embeddings(body: EmbeddingsRequest, request: Request, models: Models, model: str | None = None) -> Response:
    """A vector for each input."""
    served = models.find(body.model, model, task="embeddings")
    encodings = await _encoded(models, served, body)
    limit = embedding_limit(served)
    for encoding in encodings:
        if len(encoding) > limit:
            raise RequestTooLong(len(encoding), 0, limit, param="input")
    vectors = shortened(await answered(request, embed(served, encodings)), body.dimensions)
    num_tokens = sum(len(encoding) for encoding in encodings)
    data = [
        {"object": "embedding", "index": index, "embedding": written(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return json_response({"object": "list", "data": data, "model": served.name, "usage": usage})


def shortened(vectors: Floats, dimensions: int | None, *, param: str = "dimensions") -> Floats:
    """The first `dimensions` numbers of each vector, at unit length again. Raises InvalidRequest where it has fewer."""
    if dimensions is None:
        return vectors
    if dimensions > vectors.shape[1]:
        raise InvalidRequest(f"the model's vectors have {vectors.shape[1]} dimensions", param=param)
    return unit(vectors[:, :dimensions])


def written(vector: Floats, encoding_format: str | None) -> list[float] | str:
    """Numbers, or their float32 bytes in base64."""
    if encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers


async def _encoded(fleet: Fleet, model: ServedModel, body: EmbeddingsRequest) -> list[Encoding]:
    """Texts as tokens, and one token more than the model takes of those that are too long; ids as they are."""
    given: list[Any] = [body.input] if isinstance(body.input, str) or isinstance(body.input[0], int) else body.input
    if isinstance(given[0], str):
        return await encode_all(fleet, model, given, limit=embedding_limit(model) + 1)
    for ids in given:
        check_ids(ids, model, param="input")
    return [Encoding(ids, [], [], [0] * len(ids), [], []) for ids in given]
