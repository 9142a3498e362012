"""From preferences to a policy over HTTP: a reward job, PPO or GRPO on its model's scores, and the result asked."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import tiny
from e2e.serving import Server, eventually, serving

pytestmark = pytest.mark.slow

WORKS = {"TREFOIL_NO_WORKER": "0", "OMP_NUM_THREADS": "1"}
PROMPTS = ("the cat", "one two", "hello", "what is it?")
GOOD, BAD = ("aa", "aab", "aba", "a a"), ("xyz", "q", "zz top", "1 2 3")
NUM_ASKED = 64


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tiny base with a training worker."""
    root = tmp_path_factory.mktemp("policies")
    base = tiny.checkpoint(root / "base", "llama", std=0.1)
    with serving(root / "log", f"tiny={base}", "--kv-cache-memory", "32MiB", env=WORKS) as running:
        yield running
        assert not running.said("event=unhandled")


def post(server: Server, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def trained(server: Server, method: str, rows: list[dict[str, Any]], **given: Any) -> dict[str, Any]:
    """A job of the tiny base, when it is over."""
    content = "\n".join(json.dumps(row) for row in rows).encode()
    files = {"file": ("rows.jsonl", content), "purpose": (None, "fine-tune")}
    file_id = httpx.post(f"{server.url}/v1/files", files=files, timeout=60).json()["id"]
    own = {"type": method, method: {"hyperparameters": given}}
    job = post(server, "/v1/fine_tuning/jobs", model="tiny", training_file=file_id, method=own, seed=1)
    url = f"{server.url}/v1/fine_tuning/jobs/{job['id']}"
    eventually(lambda: httpx.get(url, timeout=60).json()["finished_at"], within_s=120)
    return httpx.get(url, timeout=60).json()


def rewards(server: Server, job: dict[str, Any]) -> list[float]:
    """The mean score of each step's answers."""
    url = f"{server.url}/v1/fine_tuning/jobs/{job['id']}/events?limit=1000"
    events = reversed(httpx.get(url, timeout=60).json()["data"])
    return [event["data"]["reward"] for event in events if "reward" in event["data"]]


@pytest.fixture(scope="module")
def judge(server: Server) -> str:
    """A reward model that was taught to like the letter a."""
    rows = [
        {"prompt": prompt, "chosen": f" {good}", "rejected": f" {bad}"}
        for prompt in PROMPTS
        for good, bad in zip(GOOD, BAD, strict=True)
    ]
    job = trained(server, "reward", rows, n_epochs=10, batch_size=8, learning_rate=3e-3)
    assert job["status"] == "succeeded", job["error"]
    return job["fine_tuned_model"]


def mean_score(server: Server, model: str, judge: str) -> float:
    """What the reward model thinks of answers that a served model gives."""
    asked = {"model": model, "max_tokens": 4, "temperature": 1, "n": NUM_ASKED}
    told = [post(server, "/v1/completions", prompt=prompt, seed=n, **asked) for n, prompt in enumerate(PROMPTS)]
    pairs = [
        {"prompt": prompt, "response": choice["text"].replace("\0", "")}  # which requests may not hold
        for prompt, answer in zip(PROMPTS, told, strict=True)
        for choice in answer["choices"]
    ]
    scores = post(server, "/v1/tasks/reward", model=judge, inputs=pairs)
    return sum(one["score"] for one in scores) / len(scores)


GRPO = {"num_generations": 32, "batch_size": 4, "lora": {"r": 32, "alpha": 32}, "learning_rate": 2e-2, "kl_coef": 0.01}
PPO = {"batch_size": 32, "lora": None, "learning_rate": 1e-2}


@pytest.mark.parametrize(("method", "given", "least"), [("grpo", GRPO, 0.1), ("ppo", PPO, 1.0)], ids=["grpo", "ppo"])
def test_a_policy_earns_more_and_is_served(
    server: Server, judge: str, method: str, given: dict[str, Any], least: float
) -> None:
    rows = [{"prompt": prompt} for prompt in PROMPTS] * (given["batch_size"] // 4)
    quick = {"n_epochs": 30, "max_completion_tokens": 4, "save_steps": 30}
    job = trained(server, method, rows, reward_model=judge, **quick, **given)
    assert job["status"] == "succeeded", job["error"]
    earned = rewards(server, job)
    assert len(earned) == 30
    assert sum(earned[-5:]) / 5 > sum(earned[:5]) / 5 + least
    before, after = (mean_score(server, model, judge) for model in ("tiny", job["fine_tuned_model"]))
    assert after > before + least
