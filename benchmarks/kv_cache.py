"""What fewer bits of keys and values give on the CPU: decode of sequences with long contexts, and how many would fit.

    python benchmarks/shapes.py qwen2.5-0.5b /some/folder
    python benchmarks/kv_cache.py /some/folder --dtype float32 --kv-cache-dtype float32 bfloat16 fp8

Keys and values of the contexts are drawn, not computed, as a step reads as many of them in any case; the steps that are
timed are the engine's. All engines live at once and take turns, so that the machine is the same to each.
"""

import argparse
import statistics
import time
from pathlib import Path

import msgspec
import torch

from offline import generating, spec_of
from trefoil import wire
from trefoil.engine.generator import Generator
from trefoil.engine.sequence import Sequence
from trefoil_kernels.page_write import page_write


def main() -> None:
    """Every dtype in turn, round by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="auto", help="what the model computes in")
    parser.add_argument("--kv-cache-dtype", nargs="+", default=["auto", "bfloat16", "fp8"])
    parser.add_argument("--kv-cache-memory", default="2GiB")
    parser.add_argument("--num-seqs", type=int, default=16)
    parser.add_argument("--context", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=8, help="of a round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    engines = {name: filled(asked, name) for name in asked.kv_cache_dtype}
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(asked.rounds):
        for name, engine in engines.items():
            times[name] += timed(engine, asked.steps)
    print("| KV pages | tokens that fit | median step (ms) | fastest (ms) | tokens/s, by the median |")
    print("|---|---|---|---|---|")
    for name, engine in engines.items():
        middle, least = statistics.median(times[name]), min(times[name])
        fits = engine.scheduler.pool.num_pages * engine.scheduler.pool.page_size
        rate = asked.num_seqs / middle
        print(f"| {name} | {fits:,} | {middle * 1e3:.1f} | {least * 1e3:.1f} | {rate:.1f} |")


def filled(asked: argparse.Namespace, kv_cache_dtype: str) -> Generator:
    """An engine whose sequences all have their contexts, ready to decode; its first decode steps are done."""
    spec = spec_of(asked.folder, kv_cache_memory=asked.kv_cache_memory, dtype=asked.dtype, threads=asked.threads)
    engine = generating(
        msgspec.structs.replace(
            spec,
            kv_cache_dtype=kv_cache_dtype,
            max_num_seqs=max(asked.num_seqs, 256),
            max_num_batched_tokens=max(asked.num_seqs, 256),
            prefix_caching=False,
        )
    )
    params = wire.SamplingParams(max_tokens=2 * asked.num_seqs + asked.steps * (asked.rounds + 1), temperature=0.0)
    for n in range(asked.num_seqs):
        engine.submit(wire.Generate(str(n), [1 + n] * asked.context, params))
    while len(engine.scheduler.running) < asked.num_seqs or any(s.num_left > 1 for s in engine.scheduler.running):
        engine.step()
        for sequence in engine.scheduler.running:
            if sequence.num_left > 1:
                draw(engine, sequence)
    timed(engine, 2)
    return engine


def draw(engine: Generator, sequence: Sequence) -> None:
    """Normal numbers for all that a sequence would have computed but for its last row."""
    dtype = engine.runner._model.lm_head.weight.dtype
    for pages in engine.runner._pages:
        size, kv_heads, width = pages.k_PSGD.shape[1:]
        slots_T = (torch.tensor(sequence.pages)[:, None] * size + torch.arange(size)).flatten()
        page_write(pages, *torch.randn(2, len(slots_T), kv_heads, width).to(dtype), slots_T)
    sequence.computed = len(sequence.ids) - 1


def timed(engine: Generator, steps: int) -> list[float]:
    """Seconds of each step, which gives every sequence a token."""
    found = []
    for _ in range(steps):
        started = time.perf_counter()
        events = engine.step()
        found.append(time.perf_counter() - started)
        assert all(isinstance(event, wire.Tokens) for event in events), "an answer has ended"
    return found


if __name__ == "__main__":
    main()
