"""A model that two processes hold: served as one, lost as one, ended as one."""

import os
import signal
import time
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


def ranks(server: Server) -> tuple[int, int]:
    """The process ids of both."""
    (leader,) = server.engines().values()
    (follower,) = (pid for pid in children(leader) if title(pid) == "trefoil engine a rank 1")
    return leader, follower


def test_a_model_of_two_processes_is_served_lost_and_ended_as_one(folders: dict[str, Path], log: Path) -> None:
    with serving(log, f"a={folders['a']}", *FLAGS) as server:
        gives_the_published_tokens(server, folders["a"])
        tells_the_loss_of_a_rank_at_once_and_mends_it(server)
        leaves_no_process_at_ctrl_c(server)


def gives_the_published_tokens(server: Server, folder: Path) -> None:
    body = {"model": "a", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 1}
    answer = httpx.post(f"{server.url}{PATH}", json=body, timeout=30).json()
    model, ids, wanted = tiny.oracle(folder), list(PROMPT), []
    for _ in range(12):
        scores_V = tiny.oracle_logits(model, ids)[-1].log_softmax(-1)
        best = scores_V[: tiny.TOKENIZER_VOCAB].max(0)  # the rest of the vocabulary has no text
        ids.append(int(best.indices))
        wanted.append(float(best.values))
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == pytest.approx(wanted, abs=1e-4)
    assert server.said('event=no_tapes model=a why="a pass that ranks share is computed call by call"')


def tells_the_loss_of_a_rank_at_once_and_mends_it(server: Server) -> None:
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


def leaves_no_process_at_ctrl_c(server: Server) -> None:
    with streaming(server, max_tokens=200):
        everyone = descendants(server.process.pid)
        assert {*ranks(server)} <= {*everyone}
        for pid in (server.process.pid, *everyone):  # as a terminal does, to the whole group
            os.kill(pid, signal.SIGINT)
        assert server.exit_status(within_s=20) == 0
        eventually(lambda: not any(map(is_alive, everyone)), within_s=5)
