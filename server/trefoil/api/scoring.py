"""From texts to what a model's heads say of them: what every understanding route shares."""

import itertools
from collections.abc import Coroutine, Sequence
from typing import Annotated, Any, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import Request
from pydantic import Field

from trefoil import wire
from trefoil.api.deps import while_connected
from trefoil.api.fleet import Fleet, ServedModel
from trefoil.errors import InvalidRequest, RequestTooLong
from trefoil_models.cutting import Cut, Encoding, TooLittleRoomError

T = TypeVar("T")
Floats = npt.NDArray[np.float32]
Input = str | tuple[str, str | None]
"""A text, or a pair of texts whose second may be absent."""

MAX_TEXTS = 256
MOST_WINDOWED_CHARS = 250_000
"""What the texts of a request that are read in windows may have together: some 256 windows of 384 tokens."""
MOST_TOKENIZED_CHARS = 1_000_000
"""As many ideographs are as many tokens, which take 4 seconds; a book has less."""
Several = Annotated[list[T], Field(min_length=1, max_length=MAX_TEXTS)]

_numbers = itertools.count()


async def encode_all(
    fleet: Fleet, model: ServedModel, inputs: Sequence[Input], *, cut: Cut = "longest", limit: int | None = None
) -> list[Encoding]:
    """Texts and pairs as tokens, off the event loop where they are long, cut to what the model takes.

    Raises InvalidRequest where what may not be cut leaves no room.
    """
    most = limit or model.ready.max_model_len
    pairs = [(one, None) if isinstance(one, str) else one for one in inputs]
    if not model.tokenizer.takes_pairs and any(other is not None for _, other in pairs):
        raise InvalidRequest("the model's tokenizer takes no pairs of texts", param="inputs")
    size = sum(len(text) + len(other or "") for text, other in pairs)
    encode = model.tokenizer.encode_within
    try:
        return await fleet.off_loop(size, lambda: [encode(text, most, pair=other, cut=cut) for text, other in pairs])
    except TooLittleRoomError as error:
        raise InvalidRequest(f"the texts do not fit the model's {most} tokens: {error}", param="inputs") from error


def check_windowed(texts: Sequence[str], *, param: str) -> None:
    """Refuse texts that are too long to be read in windows, before a token of them is read. Raises InvalidRequest."""
    size = sum(map(len, texts))
    if size > MOST_WINDOWED_CHARS:
        most = f"at most {MOST_WINDOWED_CHARS} are read in windows"
        raise InvalidRequest(f"{size} characters are too many for one request; {most}", param=param)


def check_tokenized(texts: Sequence[str], *, param: str) -> None:
    """Refuse texts that take seconds to be tokenized whole. Raises InvalidRequest."""
    size = sum(map(len, texts))
    if size > MOST_TOKENIZED_CHARS:
        raise InvalidRequest(f"{size} characters; at most {MOST_TOKENIZED_CHARS} are tokenized at once", param=param)


def text_limit(model: ServedModel) -> int:
    """Where transformers cuts texts: at the tokenizer's limit, where it has one, and never beyond the model's."""
    return min(model.ready.max_model_len, model.tokenizer.longest or model.ready.max_model_len)


def once(encoding: Encoding, head: str, **asked: Any) -> wire.Once:
    """One request to the engine."""
    return wire.Once(f"once-{next(_numbers)}", encoding.ids, head, encoding.type_ids, **asked)


async def score(model: ServedModel, encodings: Sequence[Encoding], *, head: str) -> list[Floats]:
    """What the head says of each text, in order. Raises RequestTooLong and what the engine's client raises."""
    limit = model.ready.max_model_len
    for encoding in encodings:
        if len(encoding) > limit:
            raise RequestTooLong(len(encoding), 0, limit, param="inputs")
        if not len(encoding):
            raise InvalidRequest("the text is empty, and the model's tokenizer adds nothing to it", param="inputs")
    answers = await model.engine.once([once(encoding, head) for encoding in encodings])
    return [numbers(answer) for answer in answers]


async def embed(model: ServedModel, encodings: Sequence[Encoding], *, normalize: bool | None = None) -> Floats:
    """One vector a text, [N, M]; at unit length as the folder says, or as asked."""
    vectors = np.stack(await score(model, encodings, head="embed"))
    normalizes = model.sentences.normalizes if normalize is None else normalize
    return unit(vectors) if normalizes else vectors


def embedding_limit(model: ServedModel) -> int:
    """Most tokens of a text that becomes one vector."""
    return min(text_limit(model), model.sentences.max_len or text_limit(model))


def numbers(answer: wire.Scores) -> Floats:
    """The engine's numbers as an array."""
    return np.frombuffer(answer.data, dtype="<f4").reshape(answer.shape)


async def answered(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Work for a client that waits; it ends when the client leaves."""
    return await while_connected(request, work, lambda: None)


def unit(vectors: Floats) -> Floats:
    """At unit length, over the last axis."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)


def softmax(scores: Floats) -> Floats:
    """Over the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def sigmoid(scores: Floats) -> Floats:
    """Of each number by itself."""
    return (1 / (1 + np.exp(-scores))).astype(np.float32)
