"""What is printed is what was measured, and failures are always among it."""

from pathlib import Path

import numpy as np
import pytest

from report import Latency, Record, Run, block, percentile, read_json, write_json


def run_of_three() -> Run:
    return Run(
        [
            Record(10, 1.0, [1.5, 1.75, 2.5], num_tokens=3, text="abc"),
            Record(20, 1.0, [2.0], num_tokens=1, text="d"),
            Record(30, 1.0, [1.25], num_tokens=1, error="status 503"),
        ],
        duration_s=2.0,
        max_concurrency=16,
        extra={"KV waste (%)": 3.5},
    )


@pytest.mark.parametrize("percent", [0, 1, 50, 90, 99, 100])
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_percentile_is_numpys(count: int, percent: float) -> None:
    values = np.random.default_rng(count).normal(size=count).tolist()
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))


def test_summary_counts_failures_apart() -> None:
    summary = run_of_three().summary
    assert (summary.num_ok, summary.num_failed) == (2, 1)
    assert (summary.input_tokens, summary.output_tokens) == (30, 4)
    assert (summary.requests_per_s, summary.output_per_s, summary.total_per_s) == (1.0, 2.0, 17.0)


def test_latencies_are_those_of_the_requests_that_succeeded() -> None:
    summary = run_of_three().summary
    assert summary.ttft.mean == pytest.approx(750)
    assert summary.itl.median == pytest.approx(500)
    assert summary.tpot == Latency(*[pytest.approx(500)] * 3)
    assert summary.e2e.median == pytest.approx(1250)


def test_block_has_the_lines_that_other_benchmarks_print() -> None:
    lines = block(run_of_three()).splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============"
    assert lines[-1] == "=" * 50
    assert "Successful requests:                     2" in lines
    assert "Failed requests:                         1" in lines
    assert "Output token throughput (tok/s):         2.00" in lines
    assert "---------------Time to First Token----------------" in lines
    assert "P99 TTFT (ms):                           995.00" in lines
    assert "-----Time per Output Token (excl. 1st token)------" in lines
    assert "Median ITL (ms):                         500.00" in lines
    assert "KV waste (%):                            3.50" in lines


def test_block_of_nothing_but_failures_has_no_latency() -> None:
    told = block(Run([Record(1, 0.0, error="gone")], 1.0, 1))
    assert "Failed requests:                         1" in told
    assert "Mean TTFT (ms):                          -" in told


def test_json_brings_a_run_back(tmp_path: Path) -> None:
    write_json(run_of_three(), tmp_path / "run.json")
    assert read_json(tmp_path / "run.json") == run_of_three()
