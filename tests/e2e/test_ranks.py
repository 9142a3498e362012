"""A model that two processes hold: served as one, lost as one, ended as one."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import tiny
from e2e.asking import PATH, short, streaming
from e2e.serving import Server, children, descendants, eventually, is_alive, serving, title

pytestmark = pytest.mark.slow

AT_ONCE_S = 2.0
FLAGS = ("--dtype", "float32", "--max-num-seqs", "8", "--kv-cache-memory", "64MiB", "--tensor-parallel-size", "2")
FLAGS += ("--max-num-batched-tokens", "8")
PROMPT = [5, 6, 7, 200, 31, 8, 90, 17, 64, 5, 6, 211, 40]  # more than a step's: some steps choose no token


@pytest.fixture(scope="module")
def server(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("ranks") / "stderr"
    with serving(log, f"a={folders['a']}", *FLAGS) as running:
        yield running


def ranks(server: Server) -> tuple[int, int]:
    """The process ids of both."""
    (leader,) = server.engines().values()
    (follower,) = (pid for pid in children(leader) if title(pid) == "trefoil engine a rank 1")
    return leader, follower


def test_its_tokens_are_the_published_models_own(server: Server, folders: dict[str, Path]) -> None:
    body = {"model": "a", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 1}
    answer = httpx.post(f"{server.url}{PATH}", json=body, timeout=30).json()
    model, ids, wanted = tiny.oracle(folders["a"]), list(PROMPT), []
    for _ in range(12):
        scores_V = tiny.oracle_logits(model, ids)[-1].log_softmax(-1)
        best = scores_V[: tiny.TOKENIZER_VOCAB].max(0)  # the rest of the vocabulary has no text
        ids.append(int(best.indices))
        wanted.append(float(best.values))
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == pytest.approx(wanted, abs=1e-4)
    assert server.said('event=no_tapes model=a why="a pass that ranks share is computed call by call"')


def test_the_loss_of_a_rank_is_told_at_once_and_mended(server: Server) -> None:
    server.wait_ready()
    before = ranks(server)
    with streaming(server) as doomed:
        os.kill(before[1], signal.SIGKILL)
        killed = time.monotonic()
        last = doomed.rest()[-1]
    assert time.monotonic() - killed < AT_ONCE_S
    assert last["error"]["code"] == "engine_lost"
    server.wait_ready()
    assert short(server).is_success
    assert not any(map(is_alive, before))
    assert not set(before) & set(ranks(server))


def test_an_idle_engine_notices_the_loss_of_a_rank(server: Server) -> None:
    server.wait_ready()
    eventually(server.is_idle, within_s=20)
    restarts = server.metric("engine_restarts_total")
    leader, follower = ranks(server)
    os.kill(follower, signal.SIGKILL)
    eventually(lambda: not is_alive(leader), within_s=AT_ONCE_S)
    eventually(lambda: server.metric("engine_restarts_total") == restarts + 1, within_s=20)
    server.wait_ready()
    assert short(server).is_success


def test_the_loss_of_the_first_rank_ends_the_others(server: Server) -> None:
    server.wait_ready()
    leader, follower = ranks(server)
    os.kill(leader, signal.SIGKILL)
    eventually(lambda: not is_alive(follower), within_s=AT_ONCE_S)


def test_ctrl_c_leaves_no_process(folders: dict[str, Path], log: Path) -> None:
    with serving(log, f"a={folders['a']}", *FLAGS) as server, streaming(server, max_tokens=200):
        everyone = descendants(server.process.pid)
        assert {*ranks(server)} <= {*everyone}
        for pid in (server.process.pid, *everyone):  # as a terminal does, to the whole group
            os.kill(pid, signal.SIGINT)
        assert server.exit_status(within_s=20) == 0
        eventually(lambda: not any(map(is_alive, everyone)), within_s=5)
