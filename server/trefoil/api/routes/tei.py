"""text-embeddings-inference's own routes, so that its clients work unchanged.

/embed, /embed_all, /predict, /rerank, /similarity, /tokenize, /decode, /info.
"""

from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from trefoil import __version__
from trefoil.api.deps import Models
from trefoil.api.fleet import Fleet, ServedModel
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import Answer, says
from trefoil.api.routes.openai.embeddings import Dimensions, shortened
from trefoil.api.routes.rerank import relevance
from trefoil.api.routes.tasks.embedding import Sentences
from trefoil.api.routes.tasks.text_classification import Label, ranked
from trefoil.api.schemas import Rows, TokenId, check_ids
from trefoil.api.scoring import (
    MAX_TEXTS,
    Input,
    answered,
    check_tokenized,
    embed,
    embedding_limit,
    encode_all,
    score,
    sigmoid,
    softmax,
    text_limit,
)
from trefoil.api.sse import json_response
from trefoil.api.text import StopText
from trefoil.errors import NotImplementedHere, RequestTooLong
from trefoil_models.cutting import Encoding

router = APIRouter(route_class=JsonRoute)

MAX_INPUTS = 2048
Batch = Annotated[list[StopText], Field(min_length=1, max_length=MAX_INPUTS)]
IdBatch = Annotated[list[Rows], Field(min_length=1, max_length=MAX_INPUTS)]
TextPair = Annotated[list[StopText], Field(min_length=1, max_length=2)]


class Cutting(BaseModel):
    """What every route that reads texts may be told; TEI refuses texts that are too long unless told to cut them."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    truncate: bool | None = None
    truncation_direction: Literal["left", "right", "Left", "Right"] | None = None
    prompt_name: str | None = None
    model: str | None = None

    def refuse_unsupported(self) -> None:
        """Raise NotImplementedHere for what is known and not there."""
        if self.prompt_name is not None:
            raise NotImplementedHere("prompt_name")
        if (self.truncation_direction or "right").lower() == "left":
            raise NotImplementedHere("truncation_direction")


class EmbedRequest(Cutting):
    inputs: StopText | Batch | Rows | IdBatch
    normalize: bool | None = None
    dimensions: Dimensions | None = None


class EmbedAllRequest(Cutting):
    inputs: StopText | Batch | Rows | IdBatch


class PredictRequest(Cutting):
    inputs: StopText | TextPair | Annotated[list[TextPair], Field(min_length=1, max_length=MAX_INPUTS)]
    raw_scores: bool | None = None


class TextsToRank(Cutting):
    query: StopText
    texts: Batch
    raw_scores: bool | None = None
    return_text: bool | None = None


class SimilarityRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    inputs: Sentences
    parameters: Cutting = Cutting()
    model: str | None = None


class TextsToTokenize(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    inputs: str | Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
    add_special_tokens: bool = True
    model: str | None = None


class DecodeRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    ids: list[TokenId] | list[list[TokenId]]
    skip_special_tokens: bool = True
    model: str | None = None


class RankedText(Answer):
    index: int
    score: float
    text: str | None = None


class PlacedToken(Answer):
    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Info(Answer):
    model_id: str
    model_sha: None
    model_dtype: str
    model_type: dict[str, dict[str, Any]]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: None
    docker_label: None


@router.post("/embed", responses=says(list[list[float]]))
async def embed_texts(body: EmbedRequest, request: Request, models: Models, model: str | None = None) -> Response:
    """A vector for each text, at unit length unless told otherwise."""
    body.refuse_unsupported()
    served = models.find(body.model, model, task="embeddings")
    encodings = await _encoded(models, served, _batch(body.inputs), body, limit=embedding_limit(served))
    vectors = await answered(request, embed(served, encodings, normalize=body.normalize is not False))
    return json_response(shortened(vectors, body.dimensions).tolist())


@router.post("/embed_all", responses=says(list[list[list[float]]]))
async def embed_tokens(body: EmbedAllRequest, request: Request, models: Models, model: str | None = None) -> Response:
    """The hidden row of every token of each text."""
    body.refuse_unsupported()
    served = models.find(body.model, model, task="embeddings")
    encodings = await _encoded(models, served, _batch(body.inputs), body, limit=embedding_limit(served))
    rows = await answered(request, score(served, encodings, head="hidden"))
    return json_response([one.tolist() for one in rows])


@router.post("/predict", responses=says(list[Label] | list[list[Label]]))
async def predict(body: PredictRequest, request: Request, models: Models, model: str | None = None) -> Response:
    """Labels with their scores, the likeliest first, for a text, a pair, or each of a list."""
    body.refuse_unsupported()
    served = models.find(body.model, model, task="text-classification")
    is_batch = isinstance(body.inputs, list) and isinstance(body.inputs[0], list)
    encodings = await _encoded(models, served, _pairs(body.inputs), body, limit=text_limit(served))
    found = await answered(request, score(served, encodings, head="class"))
    shares = softmax if len(served.labels) > 1 else sigmoid
    answers = [ranked(scores if body.raw_scores else shares(scores), served.labels) for scores in found]
    return json_response(answers if is_batch else answers[0])


@router.post("/rerank", responses=says(list[RankedText]))
async def rerank(body: TextsToRank, request: Request, models: Models, model: str | None = None) -> Response:
    """The texts' numbers with their scores, the best first."""
    body.refuse_unsupported()
    served = models.find(body.model, model, task="rerank")
    work = relevance(models, served, body.query, body.texts, raw_scores=bool(body.raw_scores))
    scores, _ = await answered(request, work)
    order = np.argsort(-scores, kind="stable")
    return json_response(
        [
            {"index": int(at), "score": float(scores[at]), **({"text": body.texts[at]} if body.return_text else {})}
            for at in order
        ]
    )


@router.post("/similarity", responses=says(list[float]))
async def similarity(body: SimilarityRequest, request: Request, models: Models, model: str | None = None) -> Response:
    """The cosine of the first sentence with each of the others."""
    body.parameters.refuse_unsupported()
    served = models.find(body.model, model, task="sentence-similarity")
    texts: list[Input] = [body.inputs.source_sentence, *body.inputs.sentences]
    encodings = await _encoded(models, served, texts, body.parameters, limit=embedding_limit(served))
    vectors = await answered(request, embed(served, encodings, normalize=True))
    return json_response((vectors[1:] @ vectors[0]).tolist())


@router.post("/tokenize", responses=says(list[list[PlacedToken]]))
async def tokenize(body: TextsToTokenize, models: Models, model: str | None = None) -> Response:
    """The tokens of each text, with their places in it."""
    tokenizer = models.find(body.model, model).tokenizer
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    check_tokenized(texts, param="inputs")
    special = body.add_special_tokens
    encodings = await models.off_loop(
        sum(map(len, texts)), lambda: [tokenizer.encode(text, add_special_tokens=special) for text in texts]
    )
    return json_response([_tokens(encoding) for encoding in encodings])


@router.post("/decode", responses=says(list[str]))
async def decode(body: DecodeRequest, models: Models, model: str | None = None) -> Response:
    """The text of ids, or of each list of ids."""
    served = models.find(body.model, model)
    batch: list[Any] = body.ids if body.ids and isinstance(body.ids[0], list) else [body.ids]
    skip = body.skip_special_tokens
    return json_response([served.tokenizer.decode(ids, skip_special_tokens=skip) for ids in batch])


@router.get("/info", responses=says(Info))
async def info(models: Models, model: str | None = None) -> Response:
    """What is served and its limits."""
    served = models.find(model) if model is not None or len(models.models) == 1 else models.find(task="embeddings")
    ready, settings = served.ready, models.settings
    labels = {"id2label": {str(n): label for n, label in enumerate(served.labels)}}
    kind = "classifier" if "text-classification" in ready.tasks else "embedding"
    return json_response(
        {
            "model_id": served.name,
            "model_sha": None,
            "model_dtype": ready.dtype,
            "model_type": {kind: labels if kind == "classifier" else {"pooling": "_".join(served.sentences.modes)}},
            "max_concurrent_requests": settings.max_num_seqs + settings.max_num_queued_reqs,
            "max_input_length": embedding_limit(served),
            "max_batch_tokens": settings.rows_per_step,
            "max_batch_requests": None,
            "max_client_batch_size": MAX_INPUTS,
            "auto_truncate": False,
            "tokenization_workers": 1,
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
    )


def _batch(inputs: Any) -> list[Any]:
    """One text or one list of ids as a batch of one."""
    return [inputs] if isinstance(inputs, str) or isinstance(inputs[0], int) else inputs


def _pairs(inputs: Any) -> list[Input]:
    """A text, a pair of texts, or a list of one-text and two-text lists."""
    if isinstance(inputs, str):
        return [inputs]
    batch = inputs if isinstance(inputs[0], list) else [inputs]
    return [(one[0], one[1] if len(one) > 1 else None) for one in batch]


async def _encoded(
    fleet: Fleet, model: ServedModel, batch: list[Any], cutting: Cutting, *, limit: int
) -> list[Encoding]:
    """Texts as tokens, or ids as they are. Raises RequestTooLong for what would have to be cut unasked."""
    if isinstance(batch[0], list):
        for ids in batch:
            check_ids(ids, model, param="inputs")
        encodings = [Encoding(ids, [], [], [0] * len(ids), [], []) for ids in batch]
    else:
        encodings = await encode_all(fleet, model, batch, limit=limit if cutting.truncate else limit + 1)
    for encoding in encodings:
        if len(encoding) > limit:
            raise RequestTooLong(len(encoding), 0, limit, param="inputs")
    return encodings


def _tokens(encoding: Encoding) -> list[dict[str, Any]]:
    return [
        {
            "id": token_id,
            "text": token,
            "special": text is None,
            "start": None if text is None else start,
            "stop": None if text is None else stop,
        }
        for token_id, token, (start, stop), text in zip(
            encoding.ids, encoding.tokens, encoding.offsets, encoding.texts, strict=True
        )
    ]
