"""The server held to its own OpenAPI: no 5xx, no status that it does not name, no answer off its shape."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks as openapi_checks

import tiny
import tiny_encoders
import tiny_pairs
from e2e.serving import Server, serving_soundly
from trefoil.api.app import bare_app
from trefoil.api.reference import operations

CHECKED = [
    not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.allow_header_conformance,
]
FLAGS = ("--dtype", "float32", "--kv-cache-memory", "16MiB")
TASKS = "/v1/tasks"
MODELS = {
    f"{TASKS}/text-classification": "sorter",
    f"{TASKS}/zero-shot-classification": "sorter",
    "/predict": "sorter",
    f"{TASKS}/reward": "judge",
    f"{TASKS}/token-classification": "tagger",
    f"{TASKS}/question-answering": "reader",
    f"{TASKS}/fill-mask": "filler",
    f"{TASKS}/next-sentence-prediction": "filler",
    **dict.fromkeys((f"{TASKS}/{name}" for name in ("summarization", "translation")), "t5"),
    **dict.fromkeys((f"{TASKS}/{name}" for name in ("text2text-generation", "span-filling")), "t5"),
}
"""Which model does a route's work; the decoder all others'."""
CHAT = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 2, "logprobs": True, "top_logprobs": 2}
PAIR = {"inputs": {"text": "the cat", "text_pair": "sat"}}
SIMILAR = {"inputs": {"source_sentence": "the cat", "sentences": ["the mat", "a dog"]}}
GOOD: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [{**CHAT, "prompt_logprobs": 1}, {**CHAT, "stream": True}],
    "/v1/completions": [{"prompt": "the cat", "max_tokens": 2, "logprobs": 1, "echo": True, "prompt_logprobs": 1}],
    "/v1/embeddings": [{"input": ["the", "cat"]}, {"input": "the", "encoding_format": "base64"}],
    "/v1/rerank": [{"query": "the", "documents": ["cat", "mat"]}],
    "/v1/tokenize": [{"text": "the cat"}],
    "/v1/detokenize": [{"ids": [5, 6]}],
    "/v1/plan/kv-cache": [{"seq_len": 64}],
    "/v1/plan/scaling": [{"parameters": 1e9}, {"tokens": 1e9, "law": "kaplan"}],
    f"{TASKS}/text-generation": [
        {"inputs": "the", "parameters": {"max_new_tokens": 2, "details": True, "decoder_input_details": True}},
        {"inputs": ["the", "cat"], "parameters": {"max_new_tokens": 2}},
    ],
    f"{TASKS}/perplexity": [{"inputs": "the cat sat"}, {"inputs": ["the cat", "a mat"]}],
    f"{TASKS}/text-classification": [{"inputs": "the cat"}, PAIR],
    f"{TASKS}/reward": [
        {"inputs": {"prompt": "the", "response": " cat"}},
        {"inputs": [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]},
    ],
    f"{TASKS}/zero-shot-classification": [{"inputs": "the cat", "parameters": {"candidate_labels": ["a", "b"]}}],
    f"{TASKS}/token-classification": [
        {"inputs": "the cat sat", "parameters": {"aggregation_strategy": name, "ignore_labels": []}}
        for name in ("none", "simple")
    ],
    f"{TASKS}/question-answering": [
        {"inputs": {"question": "the?", "context": "the cat sat"}, "parameters": {"top_k": k}} for k in (1, 3)
    ],
    f"{TASKS}/fill-mask": [{"inputs": "the [MASK]"}, {"inputs": "[MASK] [MASK]"}, {"inputs": ["the [MASK]"]}],
    f"{TASKS}/feature-extraction": [{"inputs": "the cat"}, {"inputs": ["the", "cat"]}],
    f"{TASKS}/sentence-similarity": [SIMILAR],
    f"{TASKS}/next-sentence-prediction": [PAIR],
    f"{TASKS}/summarization": [{"inputs": "the cat", "parameters": {"max_new_tokens": 3}}],
    f"{TASKS}/translation": [{"inputs": "the", "parameters": {"tgt_lang": "de", "max_new_tokens": 3}}],
    f"{TASKS}/text2text-generation": [{"inputs": ["the", "cat"], "parameters": {"max_new_tokens": 3}}],
    f"{TASKS}/span-filling": [{"inputs": "the ___ sat", "parameters": {"num_candidates": 2, "max_span_tokens": 3}}],
    "/embed": [{"inputs": "the cat"}],
    "/embed_all": [{"inputs": ["the cat"]}],
    "/predict": [{"inputs": "the cat"}, {"inputs": [["the", "cat"], ["a"]]}],
    "/rerank": [{"query": "the", "texts": ["cat", "mat"], "return_text": True}],
    "/similarity": [SIMILAR],
    "/tokenize": [{"inputs": "the cat"}],
    "/decode": [{"ids": [[5, 6], [7]]}],
}
"""Requests that are answered, by route."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server that can do every task; nothing trains the jobs that it is given."""
    root = tmp_path_factory.mktemp("every-kind")
    t5 = tiny_pairs.add_sentinels(tiny_pairs.checkpoint(root / "t5", "t5"))
    wishes = {"summarization": {"prefix": "sum: "}, "translation_en_to_de": {"prefix": "to German: "}}
    tiny.edit_config(t5, lambda config: config.update(task_specific_params=wishes))
    labels = {0: "contradiction", 1: "neutral", 2: "entailment"}
    folders = {
        "writer": tiny.checkpoint(root / "writer", "llama"),
        "sorter": tiny_encoders.checkpoint(root / "sorter", "bert", "ForSequenceClassification", id2label=labels),
        "judge": tiny.checkpoint(root / "judge", "llama", head="ForSequenceClassification", num_labels=1),
        "tagger": tiny_encoders.checkpoint(root / "tagger", "bert", "ForTokenClassification"),
        "reader": tiny_encoders.checkpoint(root / "reader", "distilbert", "ForQuestionAnswering"),
        "filler": tiny_encoders.checkpoint(root / "filler", "bert", "ForPreTraining"),
        "t5": t5,
    }
    with serving_soundly(root / "stderr", *(f"{name}={folder}" for name, folder in folders.items()), *FLAGS) as running:
        yield running


@cache
def reference() -> schemathesis.schemas.BaseSchema:
    """The OpenAPI as the application writes it."""
    return schemathesis.openapi.from_dict(bare_app().openapi())


ROUTES = [(method.upper(), path) for path, method, _ in operations(reference().raw_schema)]


def operation(method: str, path: str) -> APIOperation[Any, Any, Any, Any]:
    return reference()[path][method]


def hold(method: str, path: str, answer: httpx.Response) -> None:
    """Fail where an answer is none that the reference tells."""
    answer.request.read()
    places = dict.fromkeys(re.findall(r"{(\w+)}", path), "any")
    operation(method, path).Case(path_parameters=places).validate_response(answer, checks=CHECKED)


def model_of(path: str) -> dict[str, str]:
    return {} if path == "/v1/plan/scaling" else {"model": MODELS.get(path, "writer")}


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_whatever_is_sent_the_reference_told_what_comes(server: Server, method: str, path: str) -> None:
    right, wrong = (operation(method, path).as_strategy(generation_mode=mode) for mode in GenerationMode)

    @settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(right | wrong)
    def ask(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and path in GOOD:
            case.body |= model_of(path)
            parameters = case.body.get("parameters")
            if isinstance(parameters, dict) and "num_beams" in parameters:
                parameters["max_new_tokens"] = 3  # 64 beams of many tokens are slow, and no news
        case.call_and_validate(base_url=server.url, checks=CHECKED, timeout=60)

    ask()


def test_every_route_that_takes_a_body_has_a_request_here() -> None:
    posts = {path for method, path in ROUTES if method == "POST"}
    left_out = (
        "/v1/files",
        "/v1/fine_tuning",
        "/v1/models",
        f"{TASKS}/sentence-order-prediction",
    )  # one engine less to start
    assert posts - set(GOOD) == {path for path in posts if path.startswith(left_out)}


@pytest.mark.parametrize("path", GOOD)
def test_answers_have_the_shape_that_the_reference_tells(http: httpx.Client, path: str) -> None:
    for body in GOOD[path]:
        answer = http.post(path, json=model_of(path) | body)
        assert answer.status_code == 200, answer.text
        hold("POST", path, answer)


def test_files_and_jobs_have_the_shapes_that_the_reference_tells(http: httpx.Client) -> None:
    def told(method: str, path: str, **sent: Any) -> Any:
        answer = http.request(method, path.format(**ids), **sent)
        assert answer.status_code == 200, answer.text
        hold(method, path, answer)
        return answer

    ids: dict[str, str] = {}
    rows = b'{"text": "the cat sat"}\n' * 4
    ids["file_id"] = told("POST", "/v1/files", files={"file": rows}, data={"purpose": "fine-tune"}).json()["id"]
    told("GET", "/v1/files")
    told("GET", "/v1/files/{file_id}")
    assert told("GET", "/v1/files/{file_id}/content").content == rows
    asked = {"model": "writer", "training_file": ids["file_id"], "metadata": {"a": "b"}}
    ids["job_id"] = told("POST", "/v1/fine_tuning/jobs", json=asked).json()["id"]
    told("GET", "/v1/fine_tuning/jobs")
    for verb in ("pause", "resume", "cancel"):
        told("POST", f"/v1/fine_tuning/jobs/{{job_id}}/{verb}")
    for what in ("", "/events", "/checkpoints"):
        told("GET", "/v1/fine_tuning/jobs/{job_id}" + what)
    assert http.get(f"/v1/fine_tuning/jobs/{ids['job_id']}/events?stream=true").text.endswith("data: [DONE]\n\n")
    told("DELETE", "/v1/files/{file_id}")
    ids["model_id"] = "writer"
    told("GET", "/v1/models/{model_id}")
    for verb in ("unload", "load"):
        told("POST", f"/v1/models/{verb}", json={"model": "tagger"})
    for path in ("/v1/models", "/health", "/ready", "/metrics", "/version", "/info?model=filler"):
        hold("GET", path.partition("?")[0], http.get(path))
