"""One model held by N processes (`--tensor-parallel-size N`) beside one process with as many threads, over HTTP.

    python benchmarks/ranks.py FOLDER --dtype bfloat16 --rounds 3

All servers stay up and are asked in turn, each workload round after round. Printed are medians of rounds, and the
memory that the largest process of each shares with nobody. In float32 all must first answer a prompt alike; in bfloat16
sums of parts are rounded otherwise than whole ones.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from load import Target, measure
from served import Served, descendants, serve
from workload import Span, Workload

LAYOUTS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 2)}
"""Ranks, and threads of all together."""


def workload(num: int, at_once: int, prompt: int, output: int) -> Workload:
    return Workload(
        num, at_once, input_len=Span(prompt, prompt), output_len=Span(output, output), vocab_size=32000, ignore_eos=True
    )


WORKLOADS = {
    "decode, 1 sequence (tokens/s)": workload(1, 1, 16, 48),
    "decode, 16 sequences (tokens/s)": workload(16, 16, 16, 32),
    "prompt of 1024 (tokens/s)": workload(1, 1, 1024, 2),
}


def rate(target: Target, name: str, round_: int) -> float:
    """Of one round, whose prompts nobody has seen. Raises SystemExit where a request failed."""
    asked = WORKLOADS[name]
    fresh = Workload(**{key: getattr(asked, key) for key in asked.__slots__} | {"seed": round_ + 1})
    run = measure(target, fresh, num_warmups=0)
    if run.failures:
        sys.exit(f"failed: {run.failures[0]}")
    if name.startswith("prompt"):
        return 1024 / run.records[0].ttft_s
    begun = max(record.token_times[0] for record in run.records)
    ended = min(record.token_times[-1] for record in run.records)
    between = sum(begun < moment <= ended for record in run.records for moment in record.token_times)
    return between / (ended - begun)


def own_mib(served: Served) -> float:
    """The largest process's memory that nobody shares."""
    sizes = []
    for pid in descendants(served.process.pid):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        sizes.append(sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024)
    return max(sizes)


def rows(rates: Mapping[str, Mapping[str, Sequence[float]]], mib: Mapping[str, float]) -> list[str]:
    """A table, one line a layout."""
    names = list(WORKLOADS)
    lines = [f"| | {' | '.join(names)} | largest process (MiB) |", "|---" * (len(names) + 2) + "|"]
    for layout, own in rates.items():
        cells = [f"{median(own[name]):.1f} ({min(own[name]):.1f} to {max(own[name]):.1f})" for name in names]
        lines.append(f"| {layout} | {' | '.join(cells)} | {mib[layout]:.0f} |")
    return lines


def main() -> None:
    """Serve a folder in every layout and ask all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    flags = (f"m={given.folder}", "--no-worker", "--dtype", given.dtype, "--kv-cache-memory", "1GiB")
    flags += ("--max-model-len", "2048")
    with ExitStack() as stack:
        servers = {}
        for layout, (ranks, threads) in LAYOUTS.items():
            own = ("--tensor-parallel-size", str(ranks), "--threads", str(threads))
            servers[layout] = stack.enter_context(serve([*flags, *own]))
            servers[layout].wait_for("event=model_ready")
        targets = {layout: Target(served.url, "m") for layout, served in servers.items()}
        same = workload(1, 1, 16, 12)
        texts = {layout: measure(target, same).records[0].text for layout, target in targets.items()}
        if given.dtype == "float32" and len(set(texts.values())) > 1:
            sys.exit(f"the layouts answer differently: {texts}")
        rates: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for round_ in range(given.rounds):
            for name in WORKLOADS:
                for layout, target in targets.items():
                    rates[layout][name].append(rate(target, name, round_))
        print("\n".join(rows(rates, {layout: own_mib(served) for layout, served in servers.items()})))


if __name__ == "__main__":
    main()
