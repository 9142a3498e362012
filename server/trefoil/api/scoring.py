"""From encoded texts to what a head says of them: what every understanding route shares."""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trefoil import wire
from trefoil.api.fleet import ServedModel
from trefoil.errors import RequestTooLong
from trefoil_models.tokenizer import Encoding

Floats = npt.NDArray[np.float32]

_numbers = itertools.count()


async def score(model: ServedModel, encodings: Sequence[Encoding], *, head: str, param: str) -> list[Floats]:
    """What the head says of each text, in order. Raises RequestTooLong and what the engine's client raises."""
    limit = model.ready.max_model_len
    for encoding in encodings:
        if len(encoding.ids) > limit:
            raise RequestTooLong(len(encoding.ids), 0, limit, param=param)
    requests = [wire.Once(f"once-{next(_numbers)}", e.ids, head, e.type_ids) for e in encodings]
    answers = await model.engine.once(requests)
    return [np.frombuffer(answer.data, dtype="<f4").reshape(answer.shape) for answer in answers]


def softmax(scores: Floats) -> Floats:
    """Over the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def sigmoid(scores: Floats) -> Floats:
    """Of each number by itself."""
    return (1 / (1 + np.exp(-scores))).astype(np.float32)
