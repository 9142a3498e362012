"""POST /v1/tasks/feature-extraction and sentence-similarity: hidden rows or vectors of texts, and how near they are.

Features are one vector a text where the folder says how to pool, else the hidden rows of each token, as in
transformers' pipeline.
"""

from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from trefoil.api.deps import Models
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import says
from trefoil.api.routes.openai.embeddings import Dimensions, shortened, written
from trefoil.api.scoring import Several, answered, embed, embedding_limit, encode_all, score, text_limit, unit
from trefoil.api.sse import json_response
from trefoil.api.text import Text
from trefoil.errors import InvalidRequest, NotImplementedHere, RequestTooLong

router = APIRouter(route_class=JsonRoute)


class FeatureParameters(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    normalize: bool | None = None
    truncate: bool | None = None
    truncation_direction: Literal["left", "right", "Left", "Right"] | None = None
    dimensions: Dimensions | None = None
    encoding_format: Literal["float", "base64"] | None = None
    prompt_name: str | None = None


class FeatureExtractionRequest(FeatureParameters):
    """Hugging Face's client writes the parameters beside `inputs`; within `parameters` they are read too."""

    inputs: Text | Several[Text]
    parameters: FeatureParameters | None = None
    model: str | None = None

    @property
    def asked(self) -> tuple[FeatureParameters, str]:
        """What is asked for, and how its names begin. Raises InvalidRequest where it stands in both places."""
        if self.parameters is None:
            return self, ""
        for name in FeatureParameters.model_fields:
            if getattr(self, name) is not None:
                raise InvalidRequest(f"{name} belongs into parameters, where there are some", param=name)
        return self.parameters, "parameters."


class Sentences(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    source_sentence: Text
    sentences: Several[Text]


class SentenceSimilarityRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    inputs: Sentences
    parameters: dict[str, Any] | None = None
    model: str | None = None


Vector = list[float] | str
"""Numbers, or their float32 bytes in base64."""
TokenRows = list[list[list[float]]]
"""A vector for each token of one text."""


@router.post("/v1/tasks/feature-extraction", responses=says(Vector | list[Vector] | TokenRows | list[TokenRows]))
async def features(
    body: FeatureExtractionRequest, request: Request, models: Models, model: str | None = None
) -> Response:
    """Features of a text or of each of a list."""
    served = models.find(body.model, model, task="feature-extraction")
    asked, prefix = body.asked
    for name, refused in (("prompt_name", asked.prompt_name), ("truncation_direction", _is_left(asked))):
        if refused:
            raise NotImplementedHere(prefix + name)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    is_pooled = bool(served.sentences.modes)
    limit = embedding_limit(served) if is_pooled else text_limit(served)
    encodings = await encode_all(models, served, texts, limit=limit + (asked.truncate is False))
    for encoding in encodings:
        if len(encoding) > limit:
            raise RequestTooLong(len(encoding), 0, limit, param="inputs")
    if is_pooled:
        vectors = await answered(request, embed(served, encodings, normalize=asked.normalize))
        vectors = shortened(vectors, asked.dimensions, param=f"{prefix}dimensions")
        found: list[Any] = [written(vector, asked.encoding_format) for vector in vectors]
    else:
        for name, is_for_vectors in (
            ("dimensions", asked.dimensions),
            ("encoding_format", asked.encoding_format == "base64"),
        ):
            if is_for_vectors:
                raise InvalidRequest("the model gives a vector a token, not one a text", param=prefix + name)
        rows = await answered(request, score(served, encodings, head="hidden"))
        found = [[(unit(one) if asked.normalize else one).tolist()] for one in rows]
    return json_response(found[0] if isinstance(body.inputs, str) else found)


@router.post("/v1/tasks/sentence-similarity", responses=says(list[float]))
async def similarity(
    body: SentenceSimilarityRequest, request: Request, models: Models, model: str | None = None
) -> Response:
    """The cosine of the first sentence with each of the others."""
    if body.parameters:
        raise NotImplementedHere(f"parameters.{next(iter(body.parameters))}")
    served = models.find(body.model, model, task="sentence-similarity")
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    encodings = await encode_all(models, served, texts, limit=embedding_limit(served))
    vectors = await answered(request, embed(served, encodings, normalize=True))
    return json_response((vectors[1:] @ vectors[0]).tolist())


def _is_left(asked: FeatureParameters) -> bool:
    return (asked.truncation_direction or "right").lower() == "left"
