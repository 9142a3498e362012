"""A process that holds one engine and does what it is told, line by line: the other end of `encoders.Engine`.

    python with_<library>.py FOLDER DTYPE

Told `{"texts": [...], "ids": [[...]], "one_by_one": false, "vectors": "file.npy" or null}` it answers with the seconds
that the vectors took, and keeps them where asked to. The ids are those of the texts, special ones included.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

BATCH = 32
THREADS = os.cpu_count() or 1


class Engine(Protocol):
    """A vector for each text: the mean of its rows, not scaled. `sentences` and `ids` say the same."""

    def vectors(self, sentences: Sequence[str], ids: Sequence[list[int]]) -> np.ndarray: ...


def serve(load: Any) -> None:
    """Load `load(folder, dtype)`, say so, and answer until there is no more to do."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    engine: Engine = load(Path(sys.argv[1]), sys.argv[2])
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        texts, ids = asked["texts"], asked["ids"]
        started = time.perf_counter()
        if asked["one_by_one"]:
            found = np.concatenate([engine.vectors([text], [own]) for text, own in zip(texts, ids, strict=True)])
        else:
            found = engine.vectors(texts, ids)
        seconds = time.perf_counter() - started
        if asked["vectors"]:
            np.save(asked["vectors"], found)
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


def batches(ids: Sequence[list[int]]) -> list[list[int]]:
    """Numbers of the texts in batches of like length: what a padding engine does best with."""
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]


def padded(ids: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask as int64 [N, longest]."""
    longest = max(map(len, ids))
    rows = np.array([own + [0] * (longest - len(own)) for own in ids], np.int64)
    mask = np.array([[1] * len(own) + [0] * (longest - len(own)) for own in ids], np.int64)
    return rows, mask
