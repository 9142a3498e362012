"""Clients that vanish leave nothing behind, and those who wait behind them are served."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e.asking import PATH, endless, short, streaming
from e2e.serving import Server, eventually, serving

NUM_CLIENTS = 200


@pytest.fixture(scope="module")
def server(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with 8 places in the batch and 300 in the queue."""
    flags = ("--dtype", "float32", "--max-num-seqs", "8", "--max-num-queued-reqs", "300", "--kv-cache-memory", "64MiB")
    log = tmp_path_factory.mktemp("vanish") / "stderr"
    with serving(log, f"a={folders['a']}", *flags) as running:
        yield running
        assert not running.said("level=error")


async def vanish(server: Server, **changed: Any) -> None:
    """Send a request and, once it is in line or has begun to stream, break the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    content = httpx.Request("POST", f"{server.url}{PATH}", json=endless(**changed))
    head = "".join(f"{name}: {value}\r\n" for name, value in content.headers.items())
    writer.write(f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + content.content)
    await writer.drain()
    if changed.get("stream"):
        await asyncio.wait([asyncio.ensure_future(reader.read(1))], timeout=0.5)
    writer.transport.abort()


def in_line(server: Server) -> float:
    return server.metric("num_requests_running") + server.metric("num_requests_waiting")


async def test_clients_that_vanish_in_mid_stream_leave_nothing(server: Server) -> None:
    await asyncio.gather(*(vanish(server, stream=True) for _ in range(NUM_CLIENTS)))
    await asyncio.to_thread(eventually, server.is_idle, within_s=30)
    assert (await asyncio.to_thread(short, server)).is_success
    assert server.metric("request_success_total", finished_reason="abort") >= NUM_CLIENTS


async def test_clients_that_vanish_before_a_whole_answer_leave_nothing(server: Server) -> None:
    aborted = server.metric("request_success_total", finished_reason="abort")
    clients = [asyncio.create_task(wait_then_vanish(server)) for _ in range(50)]
    await asyncio.to_thread(eventually, lambda: in_line(server) == 50, within_s=30)
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    await asyncio.to_thread(eventually, server.is_idle, within_s=30)
    assert server.metric("request_success_total", finished_reason="abort") == aborted + 50


async def wait_then_vanish(server: Server) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        await client.post(f"{server.url}{PATH}", json=endless())


def test_an_answer_among_many_dies_with_its_request(server: Server) -> None:
    with streaming(server, n=6, prompt=[[5, 6], [7, 8]]):
        eventually(lambda: in_line(server) == 12, within_s=20)
    eventually(server.is_idle, within_s=20)
