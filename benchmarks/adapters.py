"""Eight adapters and the base in one batch beside the base alone: tokens a second of each, on the engine core.

    python benchmarks/adapters.py llama-110m bfloat16 [--rounds 5] [--rank 16] [--each 2]

Both engines are in this process and take turns, the base alone in one that never saw an adapter; both answer the same
prompts, new ones each round. Refuses to time what fails its check: in the mixed batch each must get what it gets alone,
and no adapter may answer as the base does. Every linear layer is adapted.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from offline import generating, spec_of
from serving import spread
from shapes import SHAPES, make_checkpoint
from trefoil import wire
from trefoil.engine.generator import Generator
from trefoil_models import checkpoint
from trefoil_models.adapter_files import save_adapter
from trefoil_models.checkpoint import DTYPES
from trefoil_models.lora import LoraShape, attach
from workload import Request, Span, Workload

NUM = 8
NAMES = (None, *(f"adapter-{n}" for n in range(NUM)))
KV_CACHE = "1GiB"


def main() -> None:
    """Check, then time by turns and print medians and what lies around them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("dtype", choices=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--each", type=int, default=2, help="requests of one adapter in a batch")
    parser.add_argument("--input-len", type=Span.parse, default=Span(64, 64))
    parser.add_argument("--output-len", type=Span.parse, default=Span(64, 64))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write every round here too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_checkpoint(given.shape, Path(scratch) / "base", DTYPES[given.dtype])
        adapters = make_adapters(folder, Path(scratch), given.rank)
        spec = spec_of(folder, kv_cache_memory=KV_CACHE, dtype=given.dtype, threads=given.threads)
        base, mixed = generating(spec), generating(spec)
        for name, adapter in adapters.items():
            mixed.load_adapter(wire.LoadAdapter(name, str(adapter)))
        asked = Workload(
            num_prompts=len(NAMES) * given.each,
            input_len=given.input_len,
            output_len=given.output_len,
            vocab_size=SHAPES[given.shape]["vocab_size"],
        )
        check(mixed, asked.requests())
        told = [one_round(base, mixed, asked, number) for number in range(given.rounds)]
    print(summary(told))
    if given.json:
        given.json.write_text(json.dumps(told), encoding="utf-8")


def make_adapters(base: Path, out: Path, rank: int) -> dict[str, Path]:
    """Adapters of every linear layer, strong enough to change what is answered."""
    folders = {name: out / name for name in NAMES if name is not None}
    for seed, folder in enumerate(folders.values()):
        model = checkpoint.load(base)
        shape = LoraShape(r=rank, alpha=2.0 * rank)
        generator = torch.Generator().manual_seed(seed)
        for layer in attach(model, shape, seed=seed).values():
            torch.nn.init.normal_(layer.lora_up, 0, 0.05, generator=generator)
        save_adapter(model, folder, shape, base="base")
    return folders


def check(engine: Generator, requests: Sequence[Request]) -> None:
    """Each name's answer in the mixed batch is its answer alone, token by token; all names answer differently."""
    first = requests[0]
    together, _ = run(engine, [first] * len(NAMES), NAMES)
    for number, name in enumerate(NAMES):
        alone, _ = run(engine, [first], [name])
        assert together[f"{number}"] == alone["0"], f"{name or 'the base'} answers differently beside others"
    assert len({tuple(ids) for ids in together.values()}) == len(NAMES), "two of them answer alike"


def one_round(base: Generator, mixed: Generator, asked: Workload, number: int) -> dict[str, float]:
    """Tokens a second of both, the one first that was second before; prompts are new each round."""
    fresh = replace(asked, content_seed=1 + number).requests()
    turns = [("base", base, [None] * len(fresh)), ("mixed", mixed, NAMES * (len(fresh) // len(NAMES)))]
    found = {}
    for name, engine, names in turns if number % 2 else reversed(turns):
        ids, seconds = run(engine, fresh, names)
        found[name] = sum(len(answer) for answer in ids.values()) / seconds
    return found


def run(
    engine: Generator, requests: Sequence[Request], names: Sequence[str | None]
) -> tuple[dict[str, list[int]], float]:
    """All requests at once to their end: the ids of each, and the seconds they took."""
    started = time.perf_counter()
    ids: dict[str, list[int]] = {f"{number}": [] for number in range(len(requests))}
    for number, (request, name) in enumerate(zip(requests, names, strict=True)):
        params = wire.SamplingParams(max_tokens=request.max_tokens, temperature=0.0)
        refused = engine.submit(wire.Generate(f"{number}", request.ids, params, 0, name))
        assert not refused, refused
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, wire.Tokens):
                ids[event.id] += event.ids
    return ids, time.perf_counter() - started


def summary(told: Sequence[Mapping[str, float]]) -> str:
    """Medians, with the least and the greatest; the ratio is taken round by round."""
    ratios = [one["mixed"] / one["base"] for one in told]
    lines = [f"{name:<6} {spread([one[name] for one in told], digits=0)} tokens/s" for name in ("base", "mixed")]
    return "\n".join([*lines, f"mixed / base {spread(ratios, digits=2)}"])


if __name__ == "__main__":
    main()
