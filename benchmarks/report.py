"""From what each request lived through to the block that serving benchmarks print, and to JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

WIDTH = 50


@dataclass(slots=True)
class Record:
    """One request's fate. `token_times` has the arrival of every piece of text; `error` says why it failed."""

    prompt_len: int
    started_s: float
    token_times: list[float] = field(default_factory=list)
    num_tokens: int = 0
    text: str = ""
    error: str | None = None

    @property
    def ttft_s(self) -> float:
        return self.token_times[0] - self.started_s

    @property
    def e2e_s(self) -> float:
        return self.token_times[-1] - self.started_s

    @property
    def gaps_s(self) -> list[float]:
        """Inter-token latencies: every gap between two pieces of text."""
        return [after - before for before, after in zip(self.token_times, self.token_times[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Latency:
    """A distribution in milliseconds; None where nothing was measured."""

    mean: float | None
    median: float | None
    p99: float | None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        if not seconds:
            return cls(None, None, None)
        mean = sum(seconds) / len(seconds)
        return cls(mean * 1e3, percentile(seconds, 50) * 1e3, percentile(seconds, 99) * 1e3)


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of one run. Latencies and throughputs are those of the requests that succeeded."""

    num_ok: int
    num_failed: int
    max_concurrency: int
    duration_s: float
    input_tokens: int
    output_tokens: int
    ttft: Latency
    tpot: Latency
    itl: Latency
    e2e: Latency

    @property
    def requests_per_s(self) -> float:
        return self.num_ok / self.duration_s

    @property
    def output_per_s(self) -> float:
        return self.output_tokens / self.duration_s

    @property
    def total_per_s(self) -> float:
        return (self.input_tokens + self.output_tokens) / self.duration_s


@dataclass(frozen=True, slots=True)
class Run:
    """All records of one workload on one engine; `extra` holds lines that only this engine can print."""

    records: list[Record]
    duration_s: float
    max_concurrency: int
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        return [record.error for record in self.records if record.error is not None]

    @property
    def summary(self) -> Summary:
        done = [record for record in self.records if record.error is None]
        return Summary(
            num_ok=len(done),
            num_failed=len(self.records) - len(done),
            max_concurrency=self.max_concurrency,
            duration_s=self.duration_s,
            input_tokens=sum(record.prompt_len for record in done),
            output_tokens=sum(record.num_tokens for record in done),
            ttft=Latency.of([record.ttft_s for record in done]),
            tpot=Latency.of(
                [(r.e2e_s - r.ttft_s) / (r.num_tokens - 1) for r in done if r.num_tokens > 1],
            ),
            itl=Latency.of([gap for record in done for gap in record.gaps_s]),
            e2e=Latency.of([record.e2e_s for record in done]),
        )


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest ranks, as numpy has it."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def block(run: Run) -> str:
    """The block, line by line as other serving benchmarks print it."""
    s = run.summary
    lines = [
        f"{' Serving Benchmark Result ':=^{WIDTH}}",
        _line("Successful requests:", s.num_ok),
        _line("Failed requests:", s.num_failed),
        _line("Maximum request concurrency:", s.max_concurrency),
        _line("Benchmark duration (s):", s.duration_s),
        _line("Total input tokens:", s.input_tokens),
        _line("Total generated tokens:", s.output_tokens),
        _line("Request throughput (req/s):", s.requests_per_s),
        _line("Output token throughput (tok/s):", s.output_per_s),
        _line("Total token throughput (tok/s):", s.total_per_s),
    ]
    for title, short, latency in (
        ("Time to First Token", "TTFT", s.ttft),
        ("Time per Output Token (excl. 1st token)", "TPOT", s.tpot),
        ("Inter-token Latency", "ITL", s.itl),
        ("End-to-end Latency", "E2EL", s.e2e),
    ):
        lines.append(f"{title:-^{WIDTH}}")
        lines.append(_line(f"Mean {short} (ms):", latency.mean))
        lines.append(_line(f"Median {short} (ms):", latency.median))
        lines.append(_line(f"P99 {short} (ms):", latency.p99))
    if run.extra:
        lines.append(f"{'This engine':-^{WIDTH}}")
        lines += [_line(f"{name}:", value) for name, value in run.extra.items()]
    return "\n".join([*lines, "=" * WIDTH])


def write_json(run: Run, path: Path) -> None:
    """Everything, so that another program can read the run back with `read_json`."""
    path.write_bytes(orjson.dumps({"summary": run.summary, "run": run}, option=orjson.OPT_INDENT_2))


def read_json(path: Path) -> Run:
    """What `write_json` wrote."""
    stored: dict[str, Any] = orjson.loads(path.read_bytes())["run"]
    records = [Record(**record) for record in stored.pop("records")]
    return Run(records, **stored)


def _line(name: str, value: float | None) -> str:
    shown = "-" if value is None else f"{value}" if isinstance(value, int) else f"{value:.2f}"
    return f"{name:<40} {shown:<10}".rstrip()
