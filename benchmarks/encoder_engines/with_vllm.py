"""vLLM's CPU build, its engine in this process: all texts at once, which it batches itself."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

# by itself it keeps one of two cores for its front end, and its engine in a process of its own
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
    "OMP_NUM_THREADS": str(os.cpu_count()),
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}

import numpy as np
import worker
from safetensors.numpy import load_file, save_file
from vllm import LLM
from vllm.config import PoolerConfig


class Vllm:
    def __init__(self, folder: Path, dtype: str) -> None:
        pooling = PoolerConfig(seq_pooling_type="MEAN", use_activation=False)
        self.model = LLM(str(known(folder)), runner="pooling", dtype=dtype, pooler_config=pooling)

    def vectors(self, sentences: Sequence[str], ids: Sequence[list[int]]) -> np.ndarray:
        answers = self.model.embed([{"prompt_token_ids": own} for own in ids], use_tqdm=False)
        return np.array([answer.outputs.embedding for answer in answers], np.float32)


def known(folder: Path) -> Path:
    """The folder with names of weights that vLLM knows, which begin with no `bert.`; made on first use beside it."""
    weights = load_file(folder / "model.safetensors")
    if not any(name.startswith("bert.") for name in weights):
        return folder
    path = folder.with_name(f"{folder.name}-vllm")
    shutil.copytree(folder, path, dirs_exist_ok=True)
    save_file({name.removeprefix("bert."): weight for name, weight in weights.items()}, path / "model.safetensors")
    return path


if __name__ == "__main__":
    worker.serve(Vllm)
