"""`trefoil eval` and `trefoil bench`: how well a model does on a file of rows, and how fast a server answers."""

import asyncio
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from trefoil.cli.connection import asking
from trefoil.cli.flags import DEFAULT_URL, AsJson, Key, Model, ServerUrl, Url, print_json
from trefoil.errors import InvalidSetting
from trefoil_client import AsyncTrefoil, Trefoil
from trefoil_client.types import Completion

app = typer.Typer()

Row = dict[str, Any]


@app.command("eval")
def evaluate(
    data: Annotated[
        Path, typer.Argument(help="JSON lines: text+label, question+context+answers, prompt+completion or text.")
    ],
    model: Model = None,
    url: Url = None,
    api_key: Key = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many rows.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model on rows: accuracy, exact match or perplexity, as their keys ask for."""
    rows = list(_rows(data))[:limit]
    keys, measure = next(((keys, how) for keys, how in MEASURES if rows and keys <= set(rows[0])), (None, None))
    if keys is None or measure is None:
        raise InvalidSetting("DATA", str(data), "rows with text and label, question, prompt and completion, or text")
    for number, row in enumerate(rows, start=1):
        if not keys <= set(row):
            raise InvalidSetting("DATA", f"{data} line {number}", "a row with " + ", ".join(sorted(keys)))
    with asking(url, api_key, model) as (client, name):
        result = {**measure(client, name, rows), "rows": len(rows)}
    if as_json:
        print_json(result)
        return
    for title, value in result.items():
        typer.echo(f"{title:<12} {value:.4f}" if isinstance(value, float) else f"{title:<12} {value}")


@app.command()
def bench(
    url: ServerUrl = DEFAULT_URL,
    api_key: Key = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Served name.")] = None,
    num_requests: Annotated[int, typer.Option(min=1, help="How many answers.")] = 32,
    concurrency: Annotated[int, typer.Option(min=1, help="At a time.")] = 8,
    input_len: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 64,
    output_len: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Load a server with prompts that share nothing, and measure what it gives."""
    with asking(url, api_key, None) as (client, _):
        client.version()  # refused here, with its own words, rather than in the middle
    lens = (input_len, output_len)
    began = time.monotonic()
    answers = asyncio.run(_load(url, api_key, model, num_requests, concurrency, lens))
    report = _report(answers, time.monotonic() - began)
    if as_json:
        print_json(report)
        return
    for title, value in report.items():
        typer.echo(f"{title:<24} {value:.4g}")


def _rows(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _row(line, f"{path} line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting("DATA", str(path), "a readable UTF-8 file") from error


def _row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InvalidSetting("DATA", where, f"one JSON object: {error}") from error
    if not isinstance(row, dict):
        raise InvalidSetting("DATA", where, "one JSON object")
    return row


def _accuracy(client: Trefoil, model: str | None, rows: list[Row]) -> dict[str, float]:
    said = [client.classify(row["text"], row.get("text_pair"), model=model, top_k=1)[0].label for row in rows]
    return {"accuracy": _share(said, [str(row["label"]) for row in rows])}


def _span_match(client: Trefoil, model: str | None, rows: list[Row]) -> dict[str, float]:
    said = [client.answer(row["question"], row["context"], model=model).answer.strip() for row in rows]
    right = [one in row["answers"]["text"] for one, row in zip(said, rows, strict=True)]
    return {"exact_match": sum(right) / len(right)}


def _exact_match(client: Trefoil, model: str | None, rows: list[Row]) -> dict[str, float]:
    said = [client.complete(row["prompt"], model=model, temperature=0, max_tokens=64).text.strip() for row in rows]
    return {"exact_match": _share(said, [row["completion"].strip() for row in rows])}


def _perplexity(client: Trefoil, model: str | None, rows: list[Row]) -> dict[str, float]:
    scores = [client.perplexity(row["text"], model=model) for row in rows]
    logprobs = [logprob for score in scores for logprob in score.token_logprobs if logprob is not None]
    return {"perplexity": math.exp(-math.fsum(logprobs) / len(logprobs)), "tokens": float(len(logprobs))}


def _share(said: list[str], wanted: list[str]) -> float:
    return sum(one == other for one, other in zip(said, wanted, strict=True)) / len(wanted)


MEASURES: tuple[tuple[frozenset[str], Callable[[Trefoil, str | None, list[Row]], dict[str, float]]], ...] = (
    (frozenset({"text", "label"}), _accuracy),
    (frozenset({"question", "context", "answers"}), _span_match),
    (frozenset({"prompt", "completion"}), _exact_match),
    (frozenset({"text"}), _perplexity),
)


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer: when its tokens came, in seconds after it was asked for, and how many there were."""

    arrivals: list[float]
    num_tokens: int


async def _load(
    url: str, api_key: str | None, model: str | None, num: int, concurrency: int, lens: tuple[int, int]
) -> list[Timed]:
    """Ask `num` times, `concurrency` at a time."""
    gate = asyncio.Semaphore(concurrency)
    async with AsyncTrefoil(url, api_key=api_key) as client:

        async def one(number: int) -> Timed:
            async with gate:
                return await _timed(client, model, number, lens)

        return await asyncio.gather(*map(one, range(num)))


async def _timed(client: AsyncTrefoil, model: str | None, number: int, lens: tuple[int, int]) -> Timed:
    began, arrivals, last = time.monotonic(), [], None
    # ids that every vocabulary has, first ones that differ, so that no prefix is shared
    prompt = [5 + (number * 7919 + at * (number + 1)) % 90 for at in range(lens[0])]
    stream = await client.stream_complete(prompt, model=model, max_tokens=lens[1], ignore_eos=True, temperature=0)
    async for chunk in stream:
        last = chunk
        if chunk.choices:
            arrivals.append(time.monotonic() - began)
    assert isinstance(last, Completion)
    return Timed(arrivals, last.usage.completion_tokens if last.usage else 0)


def _report(answers: list[Timed], took: float) -> dict[str, float]:
    firsts = [one.arrivals[0] for one in answers if one.arrivals]
    gaps = [after - before for one in answers for before, after in zip(one.arrivals, one.arrivals[1:], strict=False)]
    total = sum(one.num_tokens for one in answers)
    return {
        "requests_per_second": len(answers) / took,
        "output_tokens_per_second": total / took,
        "time_to_first_token_p50_s": _quantile(firsts, 0.5),
        "time_to_first_token_p99_s": _quantile(firsts, 0.99),
        "inter_token_latency_p50_s": _quantile(gaps, 0.5),
        "inter_token_latency_p99_s": _quantile(gaps, 0.99),
    }


def _quantile(values: list[float], share: float) -> float:
    if len(values) < 2:
        return values[0] if values else math.nan
    return statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1]
