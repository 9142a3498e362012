"""Decode of mixtures of experts beside transformers: one folder, prompt and length, by turns in one process.

    python benchmarks/shapes.py qwen3-30b-a3b-2l /some/folder
    python benchmarks/mixtures.py /some/folder --batch 1 --batch 4

A rate counts the tokens after each sequence's first, so the prompt is no part of it. Greedy, in the folder's dtype. No
rate is printed where answers differ in float32; in bfloat16 how many are the same is told.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, logging

from offline import generating, spec_of
from trefoil import wire
from trefoil.engine.generator import Generator
from trefoil.logs import configure_logs

PROMPT_LEN = 32


@dataclass(frozen=True, slots=True)
class Answered:
    """How long each sequence's tokens after its first took, and the ids of all."""

    seconds: float
    ids: list[list[int]]

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return sum(len(own) - 1 for own in self.ids) / self.seconds


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
        check(own_answers(ours, prompts, given.length), other_answers(theirs, prompts, given.length), theirs.dtype)
        ratios = []
        for _ in range(given.rounds):
            own, other = own_answers(ours, prompts, given.length), other_answers(theirs, prompts, given.length)
            ratios.append(own.rate / other.rate)
            print(f"batch {batch}: trefoil {own.rate:.1f} tok/s, transformers {other.rate:.1f} tok/s", flush=True)
        print(f"batch {batch}: median of ratios {statistics.median(ratios):.2f}", flush=True)


def check(own: Answered, other: Answered, dtype: torch.dtype) -> None:
    """Say how many answers are the same, which all must be in float32."""
    same = sum(one == two for one, two in zip(own.ids, other.ids, strict=True))
    print(f"{same} of {len(own.ids)} answers are transformers'", flush=True)
    if dtype == torch.float32 and same < len(own.ids):
        sys.exit("no rates, as answers differ")


def own_answers(generator: Generator, prompts: list[list[int]], length: int) -> Answered:
    for n, ids in enumerate(prompts):
        generator.submit(wire.Generate(str(n), ids, wire.SamplingParams(max_tokens=length, temperature=0.0)))
    found: dict[str, list[int]] = {str(n): [] for n in range(len(prompts))}
    first: float | None = None
    while generator.has_work:
        for event in generator.step():
            if isinstance(event, wire.Tokens):
                found[event.id] += event.ids
                first = first or time.perf_counter()
    assert first is not None
    return Answered(time.perf_counter() - first, list(found.values()))


@torch.no_grad()
def other_answers(model: PreTrainedModel, prompts: list[list[int]], length: int) -> Answered:
    """By hand, so that nothing but the model is timed."""
    out = model(torch.tensor(prompts), use_cache=True)
    started, cache = time.perf_counter(), out.cache
    ids = [out.logits[:, -1:].argmax(-1)]
    for _ in range(length - 1):
        out = model(ids[-1], cache=cache, use_cache=True)
        ids.append(out.logits[:, -1:].argmax(-1))
    return Answered(time.perf_counter() - started, torch.cat(ids, 1).tolist())


if __name__ == "__main__":
    main()
