"""Plans are the textbook's numbers, for configs in every family's words."""

from pathlib import Path
from typing import Any

import httpx
import pytest

import tiny
from e2e.serving import Server, serving

LLAMA_7B = {"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}
CONFIGS: list[tuple[dict[str, Any], int]] = [
    (LLAMA_7B, 2 * 32 * 4096 * 2),
    ({**LLAMA_7B, "num_key_value_heads": 8}, 2 * 32 * 1024 * 2),
    ({**LLAMA_7B, "num_key_value_heads": 1, "head_dim": 100}, 2 * 32 * 100 * 2),
    ({"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12}, 2 * 12 * 768 * 2),
    ({"model_type": "deepseek_v3", "num_hidden_layers": 61, "num_attention_heads": 128}, 61 * (512 + 64) * 2),
    ({**LLAMA_7B, "model_type": "deepseek_v2", "kv_lora_rank": 16, "qk_rope_head_dim": 8}, 32 * 24 * 2),
    ({**LLAMA_7B, "model_type": "mixtral"}, 2 * 32 * 1024 * 2),
    ({"model_type": "t5", "num_layers": 6, "num_heads": 8, "d_kv": 64, "d_model": 512}, 2 * 12 * 512 * 2),
]


@pytest.mark.parametrize(("config", "per_token"), CONFIGS, ids=lambda value: str(value)[:40])
def test_a_token_takes_what_the_formula_says(http: httpx.Client, config: dict[str, Any], per_token: int) -> None:
    plan = http.post("/v1/plan/kv-cache", json={"config": config, "batch_size": 3, "seq_len": 50}).json()
    assert plan["bytes_per_token"] == per_token
    assert plan["bytes"] == 3 * 50 * per_token
    assert plan["allocated_bytes"] == 3 * 64 * per_token
    assert str(plan["bytes"]) in plan["formula"]


def test_llama_7b_takes_the_chapters_gigabyte(http: httpx.Client) -> None:
    body = {"config": LLAMA_7B, "seq_len": 2048, "dtype": "float16"}
    assert http.post("/v1/plan/kv-cache", json=body).json()["bytes"] == 2**30


def test_a_served_model_is_planned_as_it_is(http: httpx.Client, server: Server) -> None:
    plan = http.post("/v1/plan/kv-cache", json={"model": "a", "dtype": "float32", "seq_len": 1}).json()
    assert plan["bytes"] == 2 * 2 * 2 * 8 * 4


def test_a_cache_of_8_bits_is_planned_as_the_engine_took_it(tmp_path: Path) -> None:
    folder, env = tiny.checkpoint(tmp_path / "a", "llama"), {"TREFOIL_KV_CACHE_DTYPE": "fp8"}
    with (
        serving(tmp_path / "log", str(folder), "--kv-cache-memory", "512KiB", env=env) as running,
        httpx.Client(base_url=running.url, timeout=30) as http,
    ):
        assert http.get("/v1/models").json()["data"][0]["kv_cache_dtype"] == "fp8_e4m3"
        plan = http.post("/v1/plan/kv-cache", json={"seq_len": 1}).json()
        assert (plan["dtype"], plan["bytes_per_token"]) == ("fp8_e4m3", 2 * 2 * 2 * 8)
        assert running.said(f"dtype=fp8_e4m3 tokens={2**19 // plan['bytes_per_token']}")
        answer = http.post("/v1/completions", json={"prompt": "hello", "max_tokens": 5, "ignore_eos": True})
        assert answer.json()["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"config": {}}, "config"),
        ({"config": {**LLAMA_7B, "num_hidden_layers": "x"}}, "config"),
        ({"config": {**LLAMA_7B, "model_type": "bert"}}, "config"),
        ({"config": LLAMA_7B, "model": "a"}, "config"),
        ({"config": LLAMA_7B, "batch_size": 0}, "batch_size"),
        ({"config": LLAMA_7B, "dtype": "int3"}, "dtype"),
        ({"config": LLAMA_7B, "colour": 1}, "colour"),
        ({}, "model"),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_a_cache_that_cannot_be_planned_is_refused_by_name(
    http: httpx.Client, body: dict[str, Any], param: str
) -> None:
    answer = http.post("/v1/plan/kv-cache", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def scaled(http: httpx.Client, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = http.post("/v1/plan/scaling", json=body).json()
    return answer


def test_chinchilla_is_seventy_billion_at_its_own_budget(http: httpx.Client) -> None:
    plan = scaled(http, compute_flops=5.88e23)
    assert (plan["law"], plan["parameters"], plan["tokens"]) == (
        "chinchilla",
        pytest.approx(70e9),
        pytest.approx(1.4e12),
    )
    tenfold = scaled(http, compute_flops=5.88e24)
    assert (tenfold["parameters"], tenfold["tokens"]) == (
        pytest.approx(221e9, rel=0.01),
        pytest.approx(4.43e12, rel=0.01),
    )


@pytest.mark.parametrize("law", ["kaplan", "chinchilla"])
def test_each_quantity_gives_back_the_other_two(http: httpx.Client, law: str) -> None:
    plan = scaled(http, compute_flops=1e21, law=law)
    for name in ("parameters", "tokens"):
        again = scaled(http, law=law, **{name: plan[name]})
        assert again["compute_flops"] == pytest.approx(1e21)
        assert again["loss"] == pytest.approx(plan["loss"])
    assert plan["compute_flops"] == pytest.approx(6 * plan["parameters"] * plan["tokens"])


def test_kaplan_grows_parameters_faster(http: httpx.Client) -> None:
    small, large = (scaled(http, compute_flops=flops, law="kaplan") for flops in (8.64e19, 8.64e20))
    assert small["parameters"] == pytest.approx(1.3e9)
    assert large["parameters"] / small["parameters"] == pytest.approx(10**0.73)


@pytest.mark.parametrize("body", [{}, {"parameters": 1e9, "tokens": 1e9}, {"tokens": -1}, {"law": "moore"}], ids=str)
def test_a_budget_that_is_none_is_refused(http: httpx.Client, body: dict[str, Any]) -> None:
    answer = http.post("/v1/plan/scaling", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"]
