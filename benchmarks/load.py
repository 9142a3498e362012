"""A load generator for any server that speaks OpenAI's completions: token ids in, a stream of text out.

    python benchmarks/load.py --url http://127.0.0.1:8000 --model m --num-prompts 64 --max-concurrency 16 --ignore-eos

Time to first token counts from the moment the request is sent; a failure is counted and makes the exit status 1.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import uvloop

from report import Record, Run, block, write_json
from workload import Request, Workload, add_workload_flags, read_workload

HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}
TIMEOUT_S = 600.0
SHOWN_FAILURES = 5
SHOWN_CHARS = 300


@dataclass(frozen=True, slots=True)
class Target:
    """A server, one of its models, and how long an answer may take."""

    url: str
    model: str
    api_key: str | None = None
    timeout_s: float = TIMEOUT_S

    def client(self, connections: int) -> httpx.AsyncClient:
        """Connections are kept, one for each request in flight."""
        key = {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        return httpx.AsyncClient(
            base_url=self.url, headers={**HEADERS, **key}, timeout=self.timeout_s, limits=limits, trust_env=False
        )


def measure(target: Target, workload: Workload, *, num_warmups: int = 1) -> Run:
    """Ask everything and wait for all of it; the warm-ups come first and are not counted."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(target, workload, num_warmups))


async def _measure(target: Target, workload: Workload, num_warmups: int) -> Run:
    requests = workload.requests()
    async with target.client(workload.max_concurrency) as client:
        for request in requests[:num_warmups]:
            # other ids than those that are timed, which must not be found among the server's pages
            await ask(client, target.model, Request(request.ids[::-1], 8, 0.0), ignore_eos=True)
        started = time.perf_counter()
        records = await _ask_all(client, target.model, requests, workload)
        return Run(records, time.perf_counter() - started, workload.max_concurrency)


async def _ask_all(
    client: httpx.AsyncClient, model: str, requests: Sequence[Request], workload: Workload
) -> list[Record]:
    places = asyncio.Semaphore(workload.max_concurrency)
    started = time.perf_counter()

    async def in_turn(request: Request) -> Record:
        if request.arrival_s:
            await asyncio.sleep(started + request.arrival_s - time.perf_counter())
        async with places:
            return await ask(client, model, request, ignore_eos=workload.ignore_eos)

    return await asyncio.gather(*(in_turn(request) for request in requests))


async def ask(client: httpx.AsyncClient, model: str, request: Request, *, ignore_eos: bool) -> Record:
    """One request to its end; whatever goes wrong stands in the record."""
    body = orjson.dumps(
        {
            "model": model,
            "prompt": request.ids,
            "max_tokens": request.max_tokens,
            "temperature": 0.0,
            "ignore_eos": ignore_eos,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    answer = Answer(Record(len(request.ids), time.perf_counter()))
    try:
        async with client.stream("POST", "/v1/completions", content=body) as response:
            if response.status_code != httpx.codes.OK:
                said = (await response.aread()).decode(errors="replace")
                answer.fail(f"status {response.status_code}: {said[:SHOWN_CHARS]}")
            else:
                async for part in response.aiter_raw():
                    answer.take(part, time.perf_counter())
    except httpx.HTTPError as error:
        answer.fail(f"{type(error).__name__}: {error}")
    return answer.finish(request, ignore_eos=ignore_eos)


class Answer:
    """Fills a record from the bytes of an event stream."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self._held = b""
        self._pieces: list[str] = []
        self._ending: str | None = None
        self._is_whole = False

    def fail(self, why: str) -> None:
        """The first reason stays."""
        self.record.error = self.record.error or why

    def take(self, part: bytes, now: float) -> None:
        """Bytes that have just come; an event may be split over several parts."""
        *lines, self._held = (self._held + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def finish(self, request: Request, *, ignore_eos: bool) -> Record:
        """Nothing more comes. An answer that did not end properly, or is too short, has failed."""
        record, self.record.text = self.record, "".join(self._pieces)
        if record.error is None:
            if not self._is_whole or self._ending is None:
                self.fail("the stream ended early")
            elif not record.num_tokens or not record.token_times:
                self.fail("no tokens, or no usage to count them by")
            elif ignore_eos and record.num_tokens != request.max_tokens:
                self.fail(f"{record.num_tokens} tokens where {request.max_tokens} were asked for")
        return record

    def _event(self, payload: bytes, now: float) -> None:
        if payload == b"[DONE]":
            self._is_whole = True
            return
        try:
            event: dict[str, Any] = orjson.loads(payload)
        except orjson.JSONDecodeError:
            self.fail(f"no JSON: {payload[:SHOWN_CHARS]!r}")
            return
        if "error" in event:
            self.fail(str(event["error"])[:SHOWN_CHARS])
        for choice in event.get("choices", ()):
            self._ending = choice["finish_reason"] or self._ending
            # the first event counts even where its token shows no text yet; a last one without text is no token
            if choice["text"] or not self.record.token_times:
                self.record.token_times.append(now)
                self._pieces.append(choice["text"])
        if event.get("usage"):
            self.record.num_tokens = event["usage"]["completion_tokens"]


def told(run: Run) -> str:
    """The block, after the first failures."""
    failures = [f"failed: {failure}" for failure in run.failures[:SHOWN_FAILURES]]
    return "\n".join([*failures, block(run)])


def main() -> None:
    """Load one server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", required=True)
    parser.add_argument("--api-key")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds without a byte")
    parser.add_argument("--num-warmups", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write every number and answer here too")
    add_workload_flags(parser)
    given = parser.parse_args()
    target = Target(given.url, given.model, given.api_key, given.timeout)
    run = measure(target, read_workload(given), num_warmups=given.num_warmups)
    print(told(run))
    if given.json:
        write_json(run, given.json)
    sys.exit(bool(run.failures))


if __name__ == "__main__":
    main()
