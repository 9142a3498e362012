"""Families whose code was published beside their weights only: what that code says of tiny models.

A file of `tests/published` holds config.json's content, the tensors' names and shapes, token ids, some rows of the
logits that the original gave for them in one pass, and the ids it went on with, greedily and from its cache. The
weights are no file: `weight` computes them from a tensor's name, in whole numbers, the same everywhere.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

FOLDER = Path(__file__).parent / "published"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@dataclass(frozen=True)
class Published:
    """One original's answers; `made_with` says whose code it was."""

    made_with: str
    config: dict[str, Any]
    tensors: dict[str, list[int]]
    ids: list[int]
    logits: dict[str, list[float]]
    greedy: list[int]

    def write(self, folder: Path) -> Path:
        """The checkpoint that the original was asked about."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config), encoding="utf-8")
        tensors = {name: weight(name, shape) for name, shape in self.tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder


def read(name: str) -> Published:
    return Published(**json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))


def weight(name: str, shape: list[int]) -> Tensor:
    """Numbers from -0.4 to 0.4 that look random; weights of norms lie around one."""
    mixed = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()))
    mixed = mixed * np.uint64(2654435761) & np.uint64(0xFFFFFFFF)
    mixed ^= mixed >> np.uint64(15)
    mixed = mixed * np.uint64(2246822519) & np.uint64(0xFFFFFFFF)
    mixed ^= mixed >> np.uint64(13)
    numbers = torch.from_numpy((mixed.astype(np.float64) / 2**32 - 0.5) * 0.8).float().reshape(shape)
    return numbers + 1 if len(shape) == 1 and name.endswith("weight") else numbers
