"""An engine that dies takes only its own requests with it, tells them at once, and comes back."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from e2e.asking import PATH, endless, short, streaming
from e2e.serving import Server, children, eventually, is_alive, launch, serving

pytestmark = pytest.mark.slow

AT_ONCE_S = 2.0
FLAGS = ("--dtype", "float32", "--max-num-seqs", "8", "--kv-cache-memory", "64MiB")


@pytest.fixture(scope="module")
def server(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two models, one of which will be lost."""
    log = tmp_path_factory.mktemp("loss") / "stderr"
    with serving(log, *(f"{name}={folder}" for name, folder in folders.items()), *FLAGS) as running:
        yield running


def lose(server: Server, model: str) -> float:
    """Kill a model's engine; when that was."""
    os.kill(server.engines()[model], signal.SIGKILL)
    return time.monotonic()


def test_the_loss_of_an_engine_is_told_at_once_and_mended(server: Server) -> None:
    with streaming(server, model="a") as doomed, streaming(server, model="b") as other:
        killed = lose(server, "a")
        last = doomed.rest()[-1]
        assert time.monotonic() - killed < AT_ONCE_S
        assert last["error"]["code"] == "engine_lost"
        assert last["error"]["type"] == "service_unavailable_error"
        refused = short(server, "a")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "model_loading"
        ready = httpx.get(f"{server.url}/ready")
        assert (ready.status_code, ready.json()["loading"]) == (503, ["a"])
        assert "retry-after" in ready.headers
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert short(server, "b").is_success
        assert "choices" in other.next()
    server.wait_ready()
    assert short(server, "a").is_success
    eventually(server.is_idle, within_s=20)
    assert server.metric("engine_restarts_total", model_name="a") == 1


def test_requests_that_are_not_streamed_get_503_with_retry_after(server: Server) -> None:
    server.wait_ready()
    answers: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{server.url}{PATH}", json=endless("b"), timeout=60))
    )
    asking.start()
    eventually(lambda: server.metric("num_requests_running", model_name="b") == 1, within_s=20)
    killed = lose(server, "b")
    asking.join(timeout=AT_ONCE_S * 5)
    assert time.monotonic() - killed < AT_ONCE_S
    (answer,) = answers
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "engine_lost"
    server.wait_ready()


def test_the_sdk_raises_in_mid_stream(server: Server) -> None:
    server.wait_ready()
    body = endless("a", stream=True)
    extra = {"ignore_eos": body.pop("ignore_eos")}
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0, timeout=60) as client:
        stream = client.completions.create(**body, extra_body=extra)
        next(iter(stream))
        lose(server, "a")
        with pytest.raises(openai.APIError, match="stopped under this request"):
            list(stream)
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model="a", prompt="the", max_tokens=1)
        assert caught.value.status_code == 503


def test_a_fork_server_lost_at_the_start_is_told(folders: dict[str, Path], log: Path) -> None:
    with launch(log, f"a={folders['a']}", *FLAGS) as server:
        eventually(lambda: children(server.process.pid), within_s=30)
        (fork_server,) = children(server.process.pid)
        os.kill(fork_server, signal.SIGKILL)
        assert server.exit_status(within_s=30) == 2
        assert server.said("a: the fork server ended with status -9")


def test_once_started_a_server_has_its_engines_for_children(server: Server) -> None:
    server.wait_ready()
    eventually(lambda: set(children(server.process.pid)) == set(server.engines().values()), within_s=10)
    assert set(server.engines()) == {"a", "b"}


def test_the_end_of_the_server_ends_the_engines_and_leaves_no_files(
    folders: dict[str, Path], log: Path, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with (
        serving(log, f"a={folders['a']}", *FLAGS, env={"TMPDIR": str(temporary)}) as server,
        streaming(server),
    ):
        engines = list(server.engines().values())
        assert len(engines) == 1
        server.signal(signal.SIGKILL)
        eventually(lambda: not any(map(is_alive, engines)), within_s=10)
        assert not list(temporary.iterdir())
