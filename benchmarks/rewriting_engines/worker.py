"""A process that holds one engine and answers batch by batch: the other end of `rewriting.peer`.

    python with_<library>.py FOLDER PRECISION

Reads a line of JSON for each static batch, {"inputs": [[id, ...], ...], "max_tokens": n}, generates greedily exactly n
tokens for each, none of them the end, and answers {"seconds": s, "ids": [[id, ...], ...]}.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

THREADS = 2
PAD_ID = START_ID = END_ID = 0  # as shapes.py has them

Batch = list[list[int]]
Generate = Callable[[Batch, int], Batch]


def serve(load: Callable[[Path, str], Generate]) -> None:
    """Load `load(folder, precision)`, say so, and answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    generate = load(Path(sys.argv[1]), sys.argv[2])
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        started = time.perf_counter()
        ids = generate(asked["inputs"], asked["max_tokens"])
        print(json.dumps({"seconds": time.perf_counter() - started, "ids": ids}), file=answers, flush=True)


def padded(inputs: Batch) -> tuple[Batch, Batch]:
    """Ids and mask, all rows as long as the longest."""
    longest = max(map(len, inputs))
    ids = [own + [PAD_ID] * (longest - len(own)) for own in inputs]
    return ids, [[1] * len(own) + [0] * (longest - len(own)) for own in inputs]
