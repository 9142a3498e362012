"""transformers: padded batches of texts of like length."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
import worker


class Transformers:
    def __init__(self, folder: Path, dtype: str) -> None:
        self.model = transformers.AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def vectors(self, sentences: Sequence[str], ids: Sequence[list[int]]) -> np.ndarray:
        found: dict[int, np.ndarray] = {}
        for members in worker.batches(ids):
            rows, mask = map(torch.from_numpy, worker.padded([ids[number] for number in members]))
            hidden = self.model(rows, attention_mask=mask).last_hidden_state.float() * mask[..., None]
            found.update(zip(members, (hidden.sum(1) / mask.sum(1, keepdim=True)).numpy(), strict=True))
        return np.stack([found[number] for number in range(len(ids))])


if __name__ == "__main__":
    worker.serve(Transformers)
