"""Our trainer and trl's on one checkpoint of the 110M shape, each in a process of its own, whose peak is its own."""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from shapes import make_checkpoint

Run = Callable[[Path, int, bool], dict[str, float]]
"""The checkpoint, how many steps are timed, with LoRA or all weights; what was found."""


def found_by_each(
    script: str, about: str | None, runs: Mapping[str, Run], *, steps: int
) -> dict[str, dict[str, float]]:
    """What each of the runs found, by name. In the process of one of them: prints that and leaves."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--alone", choices=runs, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        print(json.dumps(runs[given.alone](given.folder, given.steps, given.lora)))
        sys.exit()
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint("llama-110m", Path(folder), torch.float32)
        words = ["--folder", folder, "--steps", str(given.steps), *(["--lora"] if given.lora else [])]
        return {name: _alone([sys.executable, script, "--alone", name, *words]) for name in runs}


def peak_mib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _alone(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))
