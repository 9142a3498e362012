"""Where the time of a streamed token goes: processor time of client, API and engine, then the API's own functions.

    python benchmarks/overhead.py FOLDER [--profile] --num-prompts 32 --ignore-eos

Processor time per token hardly depends on what else the machine does, so it is comparable on a noisy one. With
`--profile` the API runs under cProfile, which makes it slower; its shares are what to read then, not its seconds.
"""

import argparse
import pstats
import sys
import tempfile
import time
from pathlib import Path

import load
from report import Run
from served import Served
from serving import serving
from workload import Workload, add_workload_flags, read_workload

SHOWN = 30


def measure(folder: Path, workload: Workload, *, profile: Path | None = None) -> tuple[Run, dict[str, float]]:
    """One run over HTTP, and the processor seconds it took of each process."""
    before = ["-m", "cProfile", "-o", str(profile)] if profile else []
    with serving(folder, before=before) as served:
        then = _seconds(served)
        run = load.measure(load.Target(served.url, folder.name), workload)
        now = _seconds(served)
    return run, {name: now[name] - then[name] for name in now}


def _seconds(served: Served) -> dict[str, float]:
    return {"client": time.process_time(), **served.cpu_s()}


def main() -> None:
    """Print the shares of one model folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--profile", action="store_true")
    add_workload_flags(parser)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        profile = Path(scratch) / "api.prof" if given.profile else None
        run, seconds = measure(given.folder, read_workload(given), profile=profile)
        print(load.told(run))
        tokens = run.summary.output_tokens
        for name, own in seconds.items():
            print(f"{name:<8} {own:8.2f} s of processor time {1e6 * own / max(tokens, 1):10.1f} us a token")
        if profile:
            pstats.Stats(str(profile)).sort_stats("tottime").print_stats(SHOWN)
    sys.exit(bool(run.failures))


if __name__ == "__main__":
    main()
