"""CTranslate2: padded batches of texts of like length; converted once, beside the folder."""

from collections.abc import Sequence
from pathlib import Path

import ctranslate2
import numpy as np
import worker


class CTranslate2:
    def __init__(self, folder: Path, dtype: str) -> None:
        converted = folder.with_name(f"{folder.name}.ct2")
        if not converted.exists():
            ctranslate2.converters.TransformersConverter(str(folder)).convert(str(converted))
        self.encoder = ctranslate2.Encoder(str(converted), compute_type=dtype, intra_threads=worker.THREADS)

    def vectors(self, sentences: Sequence[str], ids: Sequence[list[int]]) -> np.ndarray:
        found: dict[int, np.ndarray] = {}
        for members in worker.batches(ids):
            hidden = np.array(self.encoder.forward_batch([ids[number] for number in members]).last_hidden_state)
            found.update((n, rows[: len(ids[n])].mean(0)) for n, rows in zip(members, hidden, strict=True))
        return np.stack([found[number] for number in range(len(ids))])


if __name__ == "__main__":
    worker.serve(CTranslate2)
