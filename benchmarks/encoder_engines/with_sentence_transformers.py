"""sentence-transformers, which is given texts and so turns them into tokens too."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import worker
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer


class SentenceTransformers:
    def __init__(self, folder: Path, dtype: str) -> None:
        words = Transformer(str(folder), max_seq_length=512, model_args={"dtype": getattr(torch, dtype)})
        self.model = SentenceTransformer(modules=[words, Pooling(words.get_word_embedding_dimension())], device="cpu")

    def vectors(self, sentences: Sequence[str], ids: Sequence[list[int]]) -> np.ndarray:
        return self.model.encode(list(sentences), batch_size=worker.BATCH, show_progress_bar=False)


if __name__ == "__main__":
    worker.serve(SentenceTransformers)
