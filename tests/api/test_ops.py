"""What operators rely on: probes, metrics by name, docs, and answers for addresses that do not exist."""

import subprocess
import sys

import httpx
import pytest

from e2e.serving import Server, environment
from trefoil import __version__

GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
COUNTERS = ("prefix_cache_queries_total", "prefix_cache_hits_total", "prompt_tokens_total", "generation_tokens_total")
HISTOGRAMS = ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds")


def test_probes_answer(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json() == {"status": "ready", "loading": []}
    assert http.get("/version").json() == {"version": __version__}


@pytest.mark.parametrize("model", ["a", "b"])
def test_metrics_are_there_for_every_model_before_its_first_request(http: httpx.Client, model: str) -> None:
    lines = [line for line in http.get("/metrics").text.splitlines() if f'model_name="{model}"' in line]
    names = {line.partition("{")[0] for line in lines}
    want = {*GAUGES, *COUNTERS, *(f"{name}_count" for name in HISTOGRAMS)}
    assert {f"trefoil:{name}" for name in want} <= names


def test_metrics_count_what_was_done(http: httpx.Client, server: Server) -> None:
    body = {"model": "b", "prompt": [5, 6, 7], "max_tokens": 9, "ignore_eos": True}
    http.post("/v1/completions", json=body)
    before = [server.metric(name, model_name="b") for name in ("prompt_tokens_total", "generation_tokens_total")]
    http.post("/v1/completions", json=body)
    after = [server.metric(name, model_name="b") for name in ("prompt_tokens_total", "generation_tokens_total")]
    assert [now - then for now, then in zip(after, before, strict=True)] == [3, 9]


def test_tasks_are_counted_by_model_and_jobs_by_status(http: httpx.Client, server: Server) -> None:
    before = server.metric("task_requests_total", model_name="b", task="perplexity")
    http.post("/v1/tasks/perplexity", json={"model": "b", "inputs": "the cat sat"})
    assert server.metric("task_requests_total", model_name="b", task="perplexity") == before + 1
    assert 'trefoil:fine_tuning_jobs{status="running"} 0.0' in http.get("/metrics").text


def test_responses_are_counted_by_route(http: httpx.Client, server: Server) -> None:
    before = server.metric("http_requests_total", route="/v1/tokenize", status="400")
    http.post("/v1/tokenize", json={})
    assert server.metric("http_requests_total", route="/v1/tokenize", status="400") == before + 1


def test_the_docs_can_be_read(http: httpx.Client) -> None:
    assert "swagger" in http.get("/docs").text.lower()
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/tasks/text-generation", "/v1/tokenize"} <= set(paths)


def test_an_unknown_route_is_404(http: httpx.Client) -> None:
    answer = http.get("/v1/nothing")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "route_not_found"
    assert "/v1/nothing" in answer.json()["error"]["message"]
    assert "x-request-id" in answer.headers


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/chat/completions"), ("POST", "/health"), ("PUT", "/v1/models")]
)
def test_a_wrong_method_is_405_and_says_which_is_right(http: httpx.Client, method: str, path: str) -> None:
    answer = http.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] in ("POST", "GET")
    assert answer.json()["error"]["code"] == "method_not_allowed"
    assert answer.headers["allow"] in answer.json()["error"]["message"]


def test_the_api_starts_without_torch() -> None:
    code = "import sys, trefoil.api.app, trefoil.api.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), timeout=60).returncode == 0
