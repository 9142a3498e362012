"""A full queue is refused at once, says when to come back, and is open again as soon as there is room."""

import asyncio
from collections import Counter
from pathlib import Path

import httpx
import openai
import pytest

from e2e.asking import PATH, endless, short, streaming
from e2e.serving import eventually, serving

FLAGS = ("--dtype", "float32", "--max-num-seqs", "2", "--max-num-queued-reqs", "3", "--kv-cache-memory", "32MiB")


@pytest.mark.slow
def test_a_full_queue_is_429_and_recovers(folders: dict[str, Path], log: Path) -> None:
    with serving(log, f"a={folders['a']}", *FLAGS) as server:
        with streaming(server, n=5):
            refused = short(server)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
            with (
                openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client,
                pytest.raises(openai.RateLimitError),
            ):
                client.completions.create(model="a", prompt="the", max_tokens=1)
        eventually(lambda: short(server).is_success, within_s=20)
        never = httpx.post(f"{server.url}{PATH}", json=endless(n=6))
        assert (never.status_code, never.json()["error"]["param"]) == (400, "n")


async def test_300_at_once_are_answered_or_told_to_come_back(folders: dict[str, Path], log: Path) -> None:
    with serving(log, f"a={folders['a']}", *FLAGS) as server:
        body = {"model": "a", "prompt": [5, 6, 7], "max_tokens": 16, "ignore_eos": True}
        limits = httpx.Limits(max_connections=300)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60) as http:
            answers = await asyncio.gather(*(http.post(PATH, json=body) for _ in range(300)))
        statuses = Counter(answer.status_code for answer in answers)
        assert set(statuses) <= {200, 429, 503}
        assert statuses[200] >= 5
        assert statuses[429] > 0
        assert all(answer.json()["usage"]["completion_tokens"] == 16 for answer in answers if answer.is_success)
        assert all("retry-after" in answer.headers for answer in answers if not answer.is_success)
        assert short(server).is_success
        eventually(server.is_idle, within_s=20)
