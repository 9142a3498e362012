"""What watches the server looks for names and paths that it has."""

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from trefoil.api.app import bare_app
from trefoil.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
VLLM = (
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total"),
    *("prefix_cache_queries_total", "prefix_cache_hits_total", "prompt_tokens_total", "generation_tokens_total"),
    *("request_success_total", "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket"),
    *("e2e_request_latency_seconds_bucket", "request_queue_time_seconds_bucket", "request_prefill_time_seconds_bucket"),
    *("request_decode_time_seconds_bucket", "request_inference_time_seconds_bucket", "request_prompt_tokens_bucket"),
    *("request_generation_tokens_bucket", "request_params_n_bucket", "request_params_max_tokens_bucket"),
)
"""What the board of vLLM's own documentation draws, after `vllm:`."""


@pytest.fixture(scope="module")
def names() -> set[str]:
    """The names of all samples once a model was asked."""
    metrics = Metrics()
    metrics.introduce("m")
    metrics.finished.labels("m", "stop").inc()
    metrics.http_requests.labels("/", "200").inc()
    found = text_string_to_metric_families(metrics.exposition().decode())
    return {sample.name for family in found for sample in family.samples}


def test_our_board_draws_what_there_is(names: set[str]) -> None:
    board = (DEPLOY / "grafana" / "dashboards" / "trefoil.json").read_text()
    drawn = set(re.findall(r"trefoil:\w+", board))
    assert len(drawn) > 10
    assert drawn <= names


def test_vllms_boards_find_their_names(names: set[str]) -> None:
    _, as_vllm = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    (rule,) = as_vllm["metric_relabel_configs"]
    renamed = {re.sub(f"^{rule['regex']}$", rule["replacement"].replace("$1", r"\1"), name) for name in names}
    assert {f"vllm:{name}" for name in VLLM} <= renamed


def test_probes_ask_paths_that_there_are() -> None:
    paths = bare_app().openapi()["paths"].keys()
    asked = re.findall(r"httpGet: {path: (\S+),", (DEPLOY / "kubernetes" / "trefoil.yaml").read_text())
    assert set(asked) == {"/health", "/ready"}
    assert set(asked) <= paths
    kinds = [one["kind"] for one in yaml.safe_load_all((DEPLOY / "kubernetes" / "trefoil.yaml").read_text())]
    assert kinds.count("Deployment") == 2
