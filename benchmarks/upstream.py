"""What a server in front costs: the same requests asked of a server directly and through a trefoil that passes them on.

    python benchmarks/upstream.py [tiny] [llama-110m] [--rounds 3]

tiny        a model of no weight, so that the way of a token is nearly all there is
llama-110m  the 110M shape in bfloat16

16 concurrent streams, by turns; both servers and the client share the machine. Answers must be the same.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import load
from report import Run
from served import serve
from serving import CACHE, COLUMNS, WrongAnswers, made, serving, spread
from workload import Span, Workload

DTYPES = {"tiny": "float32", "llama-110m": "bfloat16"}
WORKLOADS = {
    "tiny": Workload(num_prompts=64, vocab_size=1000, output_len=Span(128, 128), ignore_eos=True),
    "llama-110m": Workload(num_prompts=32, vocab_size=32000, output_len=Span(64, 64), ignore_eos=True),
}


def measure(shape: str, cache: Path, rounds: int) -> None:
    """Print both ways' numbers, and what the front's process took."""
    folder = made(shape, cache, DTYPES[shape])
    with (
        serving(folder) as direct,
        serve([f"front={direct.url}/v1", "--no-worker"]) as front,
    ):
        ways: dict[str, Callable[[Workload], Run]] = {
            "direct": lambda asked: load.measure(load.Target(direct.url, folder.name), asked),
            "through": lambda asked: load.measure(load.Target(front.url, "front"), asked),
        }
        runs: dict[str, list[Run]] = {name: [] for name in ways}
        before = front.cpu_s()["api"]
        for number in range(rounds):
            # each way has ids of its own, so that none finds the other's pages
            for place, (name, ask) in enumerate(ways.items()):
                runs[name].append(ask(replace(WORKLOADS[shape], content_seed=2 * number + place)))
        seconds = front.cpu_s()["api"] - before
        same = replace(WORKLOADS[shape], num_prompts=4, content_seed=99)
        texts = [[record.text for record in ask(same).records] for ask in ways.values()]
    if texts[0] != texts[1] or any(run.failures for own in runs.values() for run in own):
        raise WrongAnswers(f"{shape}: a request failed, or was answered otherwise through the front")
    print(f"{shape}, {WORKLOADS[shape].num_prompts} requests, {WORKLOADS[shape].max_concurrency} concurrent")
    for name, own in runs.items():
        cells = [f"{title} {spread([pick(run.summary) for run in own])}" for title, pick in COLUMNS.items()]
        print(f"  {name:<8} {', '.join(cells)}")
    tokens = sum(run.summary.output_tokens for run in runs["through"])
    pairs = zip(runs["through"], runs["direct"], strict=True)
    ratios = [through.summary.output_per_s / direct.summary.output_per_s for through, direct in pairs]
    print(
        f"  through / direct {spread(ratios, digits=3)}; the front's processor {1e6 * seconds / tokens:.0f} us a token"
    )


def main() -> None:
    """Measure the shapes that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", choices=[*DTYPES, []], default=[], metavar="|".join(DTYPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where checkpoints are kept")
    given = parser.parse_args()
    try:
        for shape in given.shapes or DTYPES:
            measure(shape, given.cache, given.rounds)
    except WrongAnswers as error:
        sys.exit(f"no times, as the answers are wrong: {error}")


if __name__ == "__main__":
    main()
