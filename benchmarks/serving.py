"""`make bench`: what serving costs, on this machine, now. No number is printed for an engine whose answers are wrong.

    python benchmarks/serving.py [speed] [waste] [startup]

speed    the 110M shape, 16 concurrent, mixed lengths: engine core against the whole server, round about
waste    KV memory that running sequences hold and do not fill, at mean length 200
startup  from the start of `trefoil serve` to the first streamed token of the bundled demo model

All engines get the same requests; rounds differ in token ids only, so that no round finds another's pages.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import load
from neighbours import QUIET_CORES, Neighbours, wait_for_quiet
from report import Run, Summary, read_json
from served import Served, environment, serve
from trefoil.api.engine_processes import compute_environment
from workload import Request, Span, Workload

HERE = Path(__file__).parent
CACHE = HERE.parent / "models.local" / "benchmarks"
KV_CACHE_MEMORY = "1GiB"

CHECK = Workload(num_prompts=24, vocab_size=1000, output_len=Span(32, 128), ignore_eos=True)
SPEED = Workload(num_prompts=32, vocab_size=32000, ignore_eos=True)
# a sequence grows while it runs: in the first the tokens it holds average 200 over its life, in the second its end does
WASTE = {
    "200 tokens held on average over a sequence's life": Workload(
        num_prompts=512, vocab_size=1000, input_len=Span(64, 248), output_len=Span(32, 128), ignore_eos=True
    ),
    "200 tokens of prompt and answer at the end": Workload(
        num_prompts=512, vocab_size=1000, input_len=Span(40, 200), output_len=Span(32, 128), ignore_eos=True
    ),
}

Measure = Callable[[Workload], Run]


class WrongAnswers(Exception):
    """An engine failed requests, or answered otherwise than the engine core did."""


@contextmanager
def engine_core(folder: Path) -> Iterator[Measure]:
    """The engine in one process, no HTTP; a fresh process each time, its start and warm-up not timed."""

    def measure(workload: Workload) -> Run:
        return run_offline(folder, workload)

    yield measure


@contextmanager
def whole_server(folder: Path) -> Iterator[Measure]:
    """`trefoil serve` over HTTP, loaded from this process."""
    with serving(folder) as served:
        target = load.Target(served.url, folder.name)

        def measure(workload: Workload) -> Run:
            return load.measure(target, workload)

        yield measure


ENGINES: dict[str, Callable[[Path], AbstractContextManager[Measure]]] = {
    "offline": engine_core,
    "trefoil": whole_server,
}
"""Whoever is compared, by name; the first is the measure of the others."""

COLUMNS: dict[str, Callable[[Summary], float | None]] = {
    "tok/s": lambda summary: summary.output_per_s,
    "TTFT p50 ms": lambda summary: summary.ttft.median,
    "TTFT p99 ms": lambda summary: summary.ttft.p99,
    "ITL p50 ms": lambda summary: summary.itl.median,
    "ITL p99 ms": lambda summary: summary.itl.p99,
}


@dataclass(frozen=True, slots=True)
class Bench:
    """How to measure: where checkpoints are kept, how often, and how long to wait for a quiet machine each time."""

    cache: Path
    rounds: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class Timed:
    """A sound run and how many cores others used meanwhile."""

    run: Run
    elsewhere: float


Round = dict[str, Timed]


def speed(bench: Bench) -> None:
    """Rounds of all engines in turn, after all have answered the same on a model where a mistake shows."""
    check_answers(made("tiny", bench.cache, "float32"), CHECK)
    folder = made("llama-110m", bench.cache, "bfloat16")
    done: list[Round] = []
    for number in range(bench.rounds):
        done.append(speed_round(folder, replace(SPEED, content_seed=number), bench.wait_s))
        told = ", ".join(
            f"{name} {own.run.summary.output_per_s:.1f} tok/s ({own.elsewhere:.2f} cores busy elsewhere)"
            for name, own in done[-1].items()
        )
        print(f"round {number}: {told}", flush=True)
    quiet = [timed for timed in done if all(own.elsewhere < QUIET_CORES for own in timed.values())]
    print(f"speed: llama-110m bfloat16, {SPEED.num_prompts} requests, {SPEED.max_concurrency} concurrent")
    if quiet:
        print(f"the {len(quiet)} of {bench.rounds} rounds in which others used less than {QUIET_CORES} cores:")
    else:
        print(f"DISTURBED: in each of the {bench.rounds} rounds others used {QUIET_CORES} cores or more:")
    print_table(quiet or done)


def speed_round(folder: Path, workload: Workload, wait_s: float) -> Round:
    """Every engine once, each when the machine is quiet, or has not become so for a while."""
    timed: Round = {}
    for name, engine in ENGINES.items():
        with engine(folder) as measure:
            wait_for_quiet(wait_s)
            neighbours = Neighbours()
            run = _sound(name, measure(workload))
            timed[name] = Timed(run, neighbours.cores())
    return timed


def print_table(rounds: Sequence[Round]) -> None:
    """Medians with least and greatest, then what each engine reaches of the first in the same round."""
    print(f"{'':<8}" + "".join(f"{column:>26}" for column in COLUMNS))
    for name in ENGINES:
        summaries = [timed[name].run.summary for timed in rounds]
        cells = [spread([pick(summary) for summary in summaries]) for pick in COLUMNS.values()]
        print(f"{name:<8}" + "".join(f"{cell:>26}" for cell in cells))
    first, *others = ENGINES
    for name in others:
        rates = [(timed[name].run.summary.output_per_s, timed[first].run.summary.output_per_s) for timed in rounds]
        ratios = spread([own / base for own, base in rates], digits=3)
        print(f"{name} / {first}, tokens a second, round by round: {ratios}")


def waste(bench: Bench) -> None:
    """KV waste, which depends on lengths, pages and schedule but not on the model: the tiny one is quick."""
    folder = made("tiny", bench.cache, "float32")
    for name, workload in WASTE.items():
        run = _sound("offline", run_offline(folder, workload, "--kv-waste"))
        told = ", ".join(f"{line} {value:.2f}" for line, value in run.extra.items())
        print(f"waste: {name}, {workload.max_concurrency} concurrent: {told}")


def startup(bench: Bench) -> None:
    """What a new user waits for after `make serve`."""
    if not (files("trefoil_models") / "demo" / "decoder" / "config.json").is_file():
        print("startup: not measured, as no demo model is bundled")
        return
    seconds, elsewhere = [], []
    for _ in range(bench.rounds):
        wait_for_quiet(bench.wait_s)
        neighbours = Neighbours()
        seconds.append(first_token_s())
        elsewhere.append(neighbours.cores())
    print(f"startup: `trefoil serve` to the first token of demo-decoder: {spread(seconds, digits=2)} s")
    print(f"         cores busy elsewhere meanwhile: {spread(elsewhere, digits=2)}")


PARTS: dict[str, Callable[[Bench], None]] = {"speed": speed, "waste": waste, "startup": startup}


def check_answers(folder: Path, workload: Workload) -> None:
    """Raise WrongAnswers unless every engine gives the first one's greedy answers."""
    answers: dict[str, list[str]] = {}
    for name, engine in ENGINES.items():
        with engine(folder) as measure:
            answers[name] = [record.text for record in _sound(name, measure(workload)).records]
    first, *others = answers
    for name in others:
        pairs = enumerate(zip(answers[name], answers[first], strict=True))
        wrong = [number for number, (own, expected) in pairs if own != expected]
        if wrong:
            raise WrongAnswers(f"{name} answers otherwise than {first} to requests {wrong} of {folder.name}")


def first_token_s(*models: str) -> float:
    """Seconds from asking for the server's process to the first streamed text of its (first) model."""
    with serve(models) as served:
        return asyncio.run(_first_token_at(served)) - served.started_s


async def _first_token_at(served: Served) -> float:
    async with load.Target(served.url, "").client(1) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        while True:
            record = await load.ask(client, model, Request([1, 2, 3], 1, 0.0), ignore_eos=True)
            if record.error is None:
                return record.token_times[0]
            if served.process.poll() is not None or time.perf_counter() - served.started_s > 120:
                raise WrongAnswers(record.error)
            await asyncio.sleep(0.02)  # the model is still loading


@contextmanager
def serving(folder: Path, *, before: Sequence[str] = ()) -> Iterator[Served]:
    """A server of one model folder, ready to answer, with the memory that the engine core gets too."""
    with serve([f"{folder.name}={folder}", "--kv-cache-memory", KV_CACHE_MEMORY], before=before) as served:
        served.wait_for("event=model_ready")
        yield served


def run_offline(folder: Path, workload: Workload, *flags: str) -> Run:
    """offline.py in its own process. Raises CalledProcessError, its output shown, where a request failed."""
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "run.json"
        program = [sys.executable, str(HERE / "offline.py"), str(folder), "--kv-cache-memory", KV_CACHE_MEMORY]
        ended = subprocess.run(
            [*program, "--json", str(result), *workload.flags(), *flags],
            env={**compute_environment(), **environment()},  # as the server has it for its engines
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if ended.returncode:
            raise WrongAnswers(f"offline failed:\n{ended.stdout}")
        return read_json(result)


def made(shape: str, cache: Path, dtype: str) -> Path:
    """The shape's folder, written on first use."""
    folder = cache / f"{shape}-{dtype}"
    if not (folder / "generation_config.json").is_file():
        program = [sys.executable, str(HERE / "shapes.py"), shape, str(folder), "--dtype", dtype]
        subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    return folder


def spread(values: Sequence[float | None], *, digits: int = 1) -> str:
    """`median (least to greatest)`; `-` where something was not measured."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "-"
    return f"{statistics.median(known):.{digits}f} ({min(known):.{digits}f} to {max(known):.{digits}f})"


def _sound(name: str, run: Run) -> Run:
    """The run itself. Raises WrongAnswers where a request failed."""
    if run.failures:
        raise WrongAnswers(f"{name}: {len(run.failures)} requests failed, the first: {run.failures[0]}")
    return run


def main() -> None:
    """Measure what is asked for; wrong answers are one line and status 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[], metavar="|".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--wait", type=float, default=60.0, help="longest wait for a quiet machine, seconds")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where checkpoints are kept")
    given = parser.parse_args()
    try:
        for name in given.parts or PARTS:
            PARTS[name](Bench(given.cache, given.rounds, given.wait))
    except WrongAnswers as error:
        sys.exit(f"no times, as the answers are wrong: {error}")


if __name__ == "__main__":
    main()
