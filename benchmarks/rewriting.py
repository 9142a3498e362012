"""An encoder-decoder on our engine beside others, all loaded together and asked by turns.

    python benchmarks/peers.py transformers ctranslate2 onnxruntime      once: their environments
    python benchmarks/rewriting.py FOLDER --precision float32

Batch 1 is one input of 64 tokens and 64 new ones. Of 16, inputs have 16 to 128 tokens and answers 16 to 96; ours arrive
at random within a quarter of a second, the others get all of them as one static batch, which runs to the longest
answer. Only tokens that were asked for count. Greedy; in float32 all must say the same. Who is not installed is left
out with a line.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from neighbours import QUIET_CORES, Neighbours
from offline import drive, generating, spec_of
from peers import LeftOut, python_of
from served import environment
from shapes import END_ID
from trefoil.logs import configure_logs
from workload import Request, Span, Workload

HERE = Path(__file__).parent
THREADS = 2
OURS = {"float32": ("float32", None), "bfloat16": ("bfloat16", None), "int8": ("bfloat16", "int8")}
"""Our dtype and quantization for each precision."""
PEERS = {
    "float32": ("transformers", "ctranslate2", "onnxruntime"),
    "bfloat16": ("transformers",),
    "int8": ("ctranslate2", "onnxruntime"),
}
ONE = Workload(1, 1, input_len=Span(64, 64), output_len=Span(64, 64))
MANY = Workload(16, 16, request_rate=64.0, input_len=Span(16, 128), output_len=Span(16, 96))


@dataclass(frozen=True, slots=True)
class Answer:
    """How long it took, and the ids of each request."""

    seconds: float
    ids: list[list[int]]


Ask = Callable[[list[Request]], Answer]


def main() -> None:
    """Measure one folder in one precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", choices=sorted(OURS), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    configure_logs(as_json=False)
    asks = {"trefoil": ours(given.folder, given.precision)}
    for engine in PEERS[given.precision]:
        try:
            asks[engine] = peer(engine, given.folder, given.precision)
        except LeftOut as why:
            print(f"{engine} is left out: {why}", flush=True)
    for name, workload in (("batch 1", ONE), ("16 concurrent", MANY)):
        compare(name, asks, workload.requests(), rounds=given.rounds, is_exact=given.precision == "float32")


def ours(folder: Path, precision: str) -> Ask:
    """Our engine in this process, requests as they arrive."""
    dtype, quantization = OURS[precision]
    spec = spec_of(folder, kv_cache_memory="512MiB", dtype=dtype, threads=THREADS)
    # a prompt seen before would be answered from its pages, and the others have none
    generator = generating(replace(spec, quantization=quantization, prefix_caching=False))

    def ask(requests: list[Request]) -> Answer:
        started = time.perf_counter()
        ledger = drive(generator, requests, len(requests), (END_ID,), ends_late=True)
        return Answer(time.perf_counter() - started, [ledger.ids[str(n)] for n in range(len(requests))])

    return ask


def peer(engine: str, folder: Path, precision: str) -> Ask:
    """Another engine in a process of its own, all requests as one batch. Raises LeftOut."""
    process = subprocess.Popen(
        [python_of(engine), HERE / "rewriting_engines" / f"with_{engine}.py", folder.resolve(), precision],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment(), "OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "PASSIVE"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    into, out = process.stdin, process.stdout
    if not out.readline():
        raise LeftOut("it did not start")

    def ask(requests: list[Request]) -> Answer:
        most = max(request.max_tokens for request in requests)
        into.write(json.dumps({"inputs": [request.ids for request in requests], "max_tokens": most}) + "\n")
        into.flush()
        said = json.loads(out.readline())
        ids = [own[: request.max_tokens] for own, request in zip(said["ids"], requests, strict=True)]
        return Answer(said["seconds"], ids)

    return ask


def compare(name: str, asks: dict[str, Ask], requests: list[Request], *, rounds: int, is_exact: bool) -> None:
    """Warm everybody up, then ask by turns; print the medians and ours over the best of the others."""
    first = {engine: ask(requests).ids for engine, ask in asks.items()}
    for engine, ids in first.items():
        same = sum(one == other for one, other in zip(ids, first["trefoil"], strict=True))
        print(f"{name}: {engine} gives {same} of {len(ids)} answers as ours")
        if is_exact and same < len(ids):
            print(f"{name}: {engine} DIFFERS")
    num_tokens = sum(request.max_tokens for request in requests)
    rates: dict[str, list[float]] = {engine: [] for engine in asks}
    busiest = 0.0
    for _ in range(rounds):
        for engine, ask in asks.items():
            neighbours = Neighbours()
            rates[engine].append(num_tokens / ask(requests).seconds)
            busiest = max(busiest, neighbours.cores())
    medians = {engine: statistics.median(found) for engine, found in rates.items()}
    for engine, found in rates.items():
        print(f"{name}: {engine:<12} {medians[engine]:7.0f} tok/s ({min(found):.0f} to {max(found):.0f})", flush=True)
    if busiest > QUIET_CORES:
        print(f"{name}: DISTURBED, {busiest:.2f} cores were busy elsewhere")
    others = [rate for engine, rate in medians.items() if engine != "trefoil"]
    if others:
        print(f"{name}: ours is {medians['trefoil'] / max(others):.2f} of the best peer")


if __name__ == "__main__":
    main()
