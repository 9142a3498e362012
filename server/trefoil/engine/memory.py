"""How much memory the pages may take, and what fits in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from trefoil_models.attend import Site
from trefoil_models.config_keys import CheckpointError


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The pool that was settled on at start; `dtype` is what its keys and values are kept in."""

    num_pages: int
    page_size: int
    page_bytes: int
    dtype: torch.dtype
    max_model_len: int
    max_source_len: int = 0

    @property
    def num_tokens(self) -> int:
        return self.num_pages * self.page_size

    @property
    def full_sequences(self) -> float:
        """How many sequences of the greatest length fit at once."""
        return self.num_tokens / (self.max_model_len + self.max_source_len)


def plan_memory(
    sites: Sequence[Site],
    *,
    page_size: int,
    dtype: torch.dtype,
    budget: int,
    max_model_len: int,
    max_num_seqs: int,
    max_source_len: int = 0,
    num_ranks: int = 1,
) -> MemoryPlan:
    """As many pages as `budget` bytes hold, but no more than `max_num_seqs` full sequences could fill.

    Of several ranks each plans for its own heads, and the budget is one rank's.

    Raises CheckpointError where not even one sequence of the greatest length fits.
    """
    page_bytes = bytes_of_page(sites, page_size=page_size, dtype=dtype)
    pages_each = -(-max_model_len // page_size) + -(-max_source_len // page_size)
    num_pages = min(budget // page_bytes, pages_each * max_num_seqs)
    if num_pages < pages_each:
        raise CheckpointError(
            f"{budget} bytes for KV pages hold {num_pages * page_size} tokens, fewer than one sequence of "
            f"{max_model_len}; give --kv-cache-memory {pages_each * page_bytes * num_ranks} or lower --max-model-len"
        )
    return MemoryPlan(num_pages, page_size, page_bytes, dtype, max_model_len, max_source_len)


def bytes_of_page(sites: Sequence[Site], *, page_size: int, dtype: torch.dtype) -> int:
    """Keys and values of a page's slots, in all layers."""
    numbers = sum((1 if site.is_latent else 2) * site.kv_heads * site.head_dim for site in sites)
    return page_size * numbers * dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Memory that is free now: the device's, or the host's within the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit, used = _cgroup_bytes("memory.max"), _cgroup_bytes("memory.current")
    return available if limit is None or used is None else min(available, max(limit - used, 0))


def _cgroup_bytes(name: str) -> int | None:
    path = Path("/sys/fs/cgroup") / name
    text = path.read_text().strip() if path.is_file() else "max"
    return int(text) if text.isdigit() else None
