"""CTranslate2: all requests that wait are one static batch, told token by token; converted once, beside the folder.

It has no continuous batching: who comes while a batch runs waits for its end, and a batch runs to its longest answer.
"""

import json
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ctranslate2
import worker
from transformers import PreTrainedTokenizerFast

GATHER_S = 0.01
"""How long the first of a batch waits for others."""


@dataclass
class Asked:
    """A request, and a mark for each of its tokens."""

    tokens: list[str]
    max_tokens: int
    told: queue.Queue[int] = field(default_factory=queue.Queue)


class CTranslate2:
    def __init__(self, folder: Path, precision: str) -> None:
        vocab = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        self._tokens = {number: token for token, number in vocab.items()}
        self._generator = ctranslate2.Generator(
            str(converted(folder, precision)), compute_type=precision, intra_threads=worker.THREADS, inter_threads=1
        )
        self._waiting: queue.Queue[Asked] = queue.Queue()
        threading.Thread(target=self._run, daemon=True).start()

    def answer(self, ids: list[int], max_tokens: int) -> Iterator[int]:
        asked = Asked([self._tokens[number] for number in ids], max_tokens)
        self._waiting.put(asked)
        for _ in range(max_tokens):
            yield asked.told.get()

    def _run(self) -> None:
        while True:
            batch = [self._waiting.get()]
            time.sleep(GATHER_S)
            while not self._waiting.empty():
                batch.append(self._waiting.get())
            self._generate(batch)

    def _generate(self, batch: list[Asked]) -> None:
        def tell(step: Any) -> bool:
            batch[step.batch_id].told.put(1)
            return False

        longest = max(asked.max_tokens for asked in batch)
        self._generator.generate_batch(
            [asked.tokens for asked in batch],
            max_length=longest,
            min_length=longest,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=tell,
        )


class Converter(ctranslate2.converters.TransformersConverter):
    """Takes the folder's tokenizer as it is: that of the model's family would bring a token of its own."""

    def load_tokenizer(self, tokenizer_class: Any, model_name_or_path: str, **kwargs: Any) -> Any:
        return PreTrainedTokenizerFast.from_pretrained(model_name_or_path)


def converted(folder: Path, precision: str) -> Path:
    """The folder in its own format, made on first use beside it."""
    path = folder.with_name(f"{folder.name}-ctranslate2-{precision}")
    if not path.exists():
        Converter(str(folder)).convert(str(path), quantization=precision)
    return path


if __name__ == "__main__":
    worker.serve(CTranslate2)
