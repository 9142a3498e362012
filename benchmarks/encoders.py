"""Encoders offline: our packed passes beside transformers' padded batches, the same random weights, in one run.

    python benchmarks/encoders.py minilm --num-texts 512

Texts of 8 to 128 tokens. transformers gets them sorted by length in batches of 32, which is the best it does. The
vectors of both must agree before anything is timed. Printed are texts a second and the ratio of ours to theirs.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import transformers

from trefoil import wire
from trefoil.engine.one_pass import OnePass
from trefoil_models import checkpoint
from trefoil_models.checkpoint import DTYPES
from trefoil_models.pooling import Pooling
from trefoil_models.sentence_files import SentenceFiles

SHAPES: dict[str, dict[str, Any]] = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
LENS = (8, 128)
BATCH = 32
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


def main() -> None:
    """Build, compare, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--num-texts", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rows", type=int, default=1024, help="token budget of our passes")
    given = parser.parse_args()
    config = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 30522, **SHAPES[given.shape]}
    texts = draw_texts(given.num_texts, config["vocab_size"])
    with tempfile.TemporaryDirectory() as name:
        folder, dtype = Path(name), DTYPES[given.dtype]
        checkpoint.save(checkpoint.build(config, seed=0), folder, config)
        ours = OnePass(
            checkpoint.load(folder, dtype=dtype),
            Pooling(SentenceFiles(), kind="encoder"),
            max_rows=given.rows,
            max_model_len=512,
        )
        theirs = transformers.BertModel.from_pretrained(folder, dtype=dtype).eval()
        apart = np.abs(our_vectors(ours, texts[:40]) - their_vectors(theirs, texts[:40])).max()
        assert apart < TOLERANCE[given.dtype], f"the vectors differ by {apart}"
        speeds = {
            "trefoil": len(texts) / timed(lambda: our_vectors(ours, texts)),
            "transformers": len(texts) / timed(lambda: their_vectors(theirs, texts)),
            "trefoil, one text at a time": 64 / timed(lambda: [our_vectors(ours, [text]) for text in texts[:64]]),
        }
    print(json.dumps({"shape": given.shape, "dtype": given.dtype, "threads": torch.get_num_threads(), **speeds}))
    print(f"ratio to transformers: {speeds['trefoil'] / speeds['transformers']:.2f}")


def draw_texts(count: int, vocab_size: int) -> list[list[int]]:
    """Random ids, of lengths drawn evenly."""
    rng = Random(0)
    return [[rng.randrange(1000, vocab_size) for _ in range(rng.randint(*LENS))] for _ in range(count)]


def our_vectors(engine: OnePass, texts: list[list[int]]) -> np.ndarray:
    """The mean of each text's rows, in order."""
    for number, ids in enumerate(texts):
        assert engine.submit(wire.Once(str(number), ids, "embed")) == []
    found: dict[int, np.ndarray] = {}
    while engine.has_work:
        for event in engine.step():
            assert isinstance(event, wire.Scores)
            found[int(event.id)] = np.frombuffer(event.data, "<f4")
    return np.stack([found[number] for number in range(len(texts))])


@torch.inference_mode()
def their_vectors(model: transformers.BertModel, texts: list[list[int]]) -> np.ndarray:
    """The same by padded batches of texts of like length."""
    found: dict[int, np.ndarray] = {}
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    for start in range(0, len(order), BATCH):
        members = order[start : start + BATCH]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(texts[number]) for number in members], batch_first=True)
        mask = torch.tensor([[int(at < len(texts[n])) for at in range(ids.shape[1])] for n in members])
        rows = model(ids, attention_mask=mask).last_hidden_state.float() * mask[..., None]
        means = (rows.sum(1) / mask.sum(1, keepdim=True)).numpy()
        found.update(zip(members, means, strict=True))
    return np.stack([found[number] for number in range(len(texts))])


def timed(work: Any) -> float:
    """Seconds of the second of two runs."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
