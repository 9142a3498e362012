"""Decode of mixtures of experts beside transformers: one folder, prompt and length, by turns in one process.

    python benchmarks/shapes.py qwen3-30b-a3b-2l /some/folder
    python benchmarks/mixtures.py /some/folder --batch 1 --batch 4

A rate counts the tokens after each sequence's first, so the prompt is no part of it. Greedy, in the folder's dtype.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, logging

from offline import generating, spec_of
from trefoil import wire
from trefoil.engine.generator import Generator
from trefoil.logs import configure_logs

PROMPT_LEN = 32


def main() -> None:
    """Measure one folder and print a line a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    configure_logs(as_json=False)
    logging.set_verbosity_error()
    ours = generating(spec_of(given.folder, kv_cache_memory="256MiB"))
    theirs = AutoModelForCausalLM.from_pretrained(given.folder, dtype="auto").eval()
    for batch in given.batch or [1]:
        prompts = [[(7 * n + 11 * at) % 1000 + 5 for at in range(PROMPT_LEN)] for n in range(batch)]
        ratios = []
        for number in range(given.rounds + 1):
            own, other = own_rate(ours, prompts, given.length), other_rate(theirs, prompts, given.length)
            if number:  # the first of each warms up
                ratios.append(own / other)
                print(f"batch {batch}: trefoil {own:.1f} tok/s, transformers {other:.1f} tok/s", flush=True)
        print(f"batch {batch}: median of ratios {statistics.median(ratios):.2f}", flush=True)


def own_rate(generator: Generator, prompts: list[list[int]], length: int) -> float:
    for n, ids in enumerate(prompts):
        generator.submit(wire.Generate(str(n), ids, wire.SamplingParams(max_tokens=length, temperature=0.0)))
    first: float | None = None
    while generator.has_work:
        has_tokens = any(isinstance(event, wire.Tokens) for event in generator.step())
        first = first or (time.perf_counter() if has_tokens else None)
    assert first is not None
    return len(prompts) * (length - 1) / (time.perf_counter() - first)


@torch.no_grad()
def other_rate(model: PreTrainedModel, prompts: list[list[int]], length: int) -> float:
    """By hand, so that nothing but the model is timed."""
    out = model(torch.tensor(prompts), use_cache=True)
    started, cache = time.perf_counter(), out.cache
    ids = out.logits[:, -1:].argmax(-1)
    for _ in range(length - 1):
        out = model(ids, cache=cache, use_cache=True)
        ids = out.logits[:, -1:].argmax(-1)
    return len(prompts) * (length - 1) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
