"""One shape for every error, the field named as the client wrote it, and nothing of the server's inside shown."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from e2e.serving import Server, serving

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TASKS = ("/v1/tasks/text-generation", "/v1/tasks/perplexity", "/v1/tokenize", "/v1/detokenize")
POSTS = (CHAT, COMPLETIONS, *TASKS)
JSON = {"content-type": "application/json"}
USER = [{"role": "user", "content": "the cat"}]


def refused(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error of an answer that has this status and the one shape, and shows nothing of the server's inside."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    assert not any(word in answer.text for word in ("Traceback", ".py", "site-packages", "/tmp/", "pydantic"))
    return error


def send(http: httpx.Client, path: str, **fields: Any) -> httpx.Response:
    """A good request with some fields changed."""
    good: dict[str, Any] = {"messages": USER} if path == CHAT else {"prompt": "the cat"}
    return http.post(path, json={"model": "a", "max_tokens": 2, **good, **fields})


NUMBERS = ("temperature", "top_p", "top_k", "min_p", "typical_p", "n", "seed", "max_tokens", "min_tokens", "priority")
PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty", "no_repeat_ngram_size", "prompt_logprobs")


@pytest.mark.parametrize("field", [*NUMBERS, *PENALTIES])
@pytest.mark.parametrize(
    "value", ["1", [], {}, True, 2**200, -1e300], ids=["text", "list", "object", "true", "huge", "-huge"]
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_number_that_is_none_is_refused_by_name(http: httpx.Client, path: str, field: str, value: object) -> None:
    assert refused(send(http, path, **{field: value}))["param"] == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", 2.1),
        ("top_p", 1.5),
        ("top_k", -2),
        ("min_p", -0.1),
        ("typical_p", 0),
        ("n", 0),
        ("n", 129),
        ("max_tokens", -1),
        ("presence_penalty", 2.5),
        ("repetition_penalty", 0),
        ("prompt_logprobs", 21),
        ("stop", [""]),
        ("stop", ""),
        ("stop", list("abcde")),
        ("stop", 5),
        ("stop", [5]),
        ("stop", ["a\0"]),
        ("stream", "yes"),
        ("stream", 1),
        ("stream_options", 5),
        ("stream_options", {"include_usage": "yes"}),
        ("logit_bias", {"cat": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"320": 1}),
        ("logit_bias", {"9" * 5000: 1}),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"5": "x"}),
        ("logit_bias", [1]),
        ("stop_token_ids", [320]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", 5),
        ("stop_token_ids", [2**80]),
        ("ignore_eos", "no"),
        ("skip_special_tokens", 3),
        ("model", 5),
        ("model", ["a"]),
        ("user", 5),
        ("metadata", "x"),
        ("min_tokens", 3),
        ("max_tokens", 257),
        ("max_tokens", 10**30),
    ],
    ids=lambda value: ascii(value)[:40],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_value_that_cannot_be_is_refused_by_name(http: httpx.Client, path: str, field: str, value: object) -> None:
    param = refused(send(http, path, **{field: value}))["param"]
    assert param.partition("[")[0].partition(".")[0] == field


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        (None, "messages"),
        ("hello", "messages"),
        (["hello"], "messages[0]"),
        ([{}], "messages[0].role"),
        ([{"role": "wizard", "content": "a"}], "messages[0].role"),
        ([*USER, {"role": 5, "content": "a"}], "messages[1].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": "a\0b"}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": ["a"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": "a", "name": 5}], "messages[0].name"),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_a_wrong_message_is_named_by_its_place(http: httpx.Client, messages: object, param: str) -> None:
    assert refused(send(http, CHAT, messages=messages))["param"] == param


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        ([], "prompt"),
        ([[]], "prompt"),
        (5, "prompt"),
        ({}, "prompt"),
        ([1, "a"], "prompt"),
        (["a", 1], "prompt"),
        ([320], "prompt"),
        ([-1], "prompt"),
        ([2**70], "prompt"),
        ([1.5], "prompt"),
        ([[1], ["a"]], "prompt"),
        ("a\0b", "prompt"),
        (["a", "\0"], "prompt"),
        (["a"] * 257, "prompt"),
        ("the " * 2000, "prompt"),
        ([5] * 256, "prompt"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_wrong_prompt_is_refused(http: httpx.Client, prompt: object, param: str) -> None:
    assert refused(send(http, COMPLETIONS, prompt=prompt))["param"].partition("[")[0] == param


@pytest.mark.parametrize("field", ["prompt", "messages"])
def test_a_missing_prompt_is_named(http: httpx.Client, field: str) -> None:
    path = COMPLETIONS if field == "prompt" else CHAT
    assert refused(http.post(path, json={"model": "a"}))["param"] == field


def test_a_prompt_that_is_too_long_says_how_long_it_may_be(http: httpx.Client) -> None:
    error = refused(send(http, COMPLETIONS, prompt=[5] * 300))
    assert error["code"] == "context_length_exceeded"
    assert "256" in error["message"]
    assert "300" in error["message"]
    error = refused(send(http, CHAT, messages=[{"role": "user", "content": "x" * 5000}]))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


def test_an_answer_that_does_not_fit_names_the_field_that_was_written(http: httpx.Client) -> None:
    assert refused(send(http, COMPLETIONS, max_tokens=256))["param"] == "max_tokens"
    body = {"model": "a", "messages": USER, "max_completion_tokens": 1000}
    assert refused(http.post(CHAT, json=body))["param"] == "max_completion_tokens"


MISUSED_SEARCH = {
    "beam_width": {"beam_width": 4},
    "length_penalty": {"length_penalty": 0.5},
    "early_stopping": {"early_stopping": True},
    "temperature": {"use_beam_search": True, "temperature": 0.7},
    "top_p": {"use_beam_search": True, "top_p": 0.9},
    "n": {"use_beam_search": True, "beam_width": 2, "n": 3},
}


@pytest.mark.parametrize("field", MISUSED_SEARCH)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_search_that_contradicts_itself_is_refused(http: httpx.Client, path: str, field: str) -> None:
    assert refused(send(http, path, **MISUSED_SEARCH[field]))["param"] == field


def test_fields_that_ask_for_nothing_are_no_reason_to_refuse(http: httpx.Client) -> None:
    neutral = {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "n": 1, "stop": None}
    assert send(http, CHAT, **neutral, logit_bias={}, best_of=1, metadata={}, user="me").is_success
    assert send(http, COMPLETIONS, suffix="", stop=[], logprobs=None, use_beam_search=False).is_success


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_unknown_fields_are_ignored_on_openai_routes(http: httpx.Client, path: str) -> None:
    assert send(http, path, colour="red", store=True).is_success


@pytest.mark.parametrize("path", TASKS)
def test_unknown_fields_are_refused_on_our_own_routes(http: httpx.Client, path: str) -> None:
    good: dict[str, Any] = {"text": "a"} if "tokenize" in path else {"inputs": "the cat sat"}
    good = {"ids": [5]} if "detokenize" in path else good
    assert http.post(path, json={"model": "a", **good}).is_success
    assert refused(http.post(path, json={"model": "a", **good, "colour": "red"}))["param"] == "colour"


def test_fields_that_contradict_each_other_are_named(http: httpx.Client) -> None:
    assert refused(send(http, CHAT, top_logprobs=3))["param"] == "top_logprobs"
    assert refused(send(http, COMPLETIONS, best_of=1, n=2))["param"] == "best_of"
    assert refused(send(http, COMPLETIONS, best_of=2, stream=True))["param"] == "best_of"
    assert refused(send(http, CHAT, logprobs=True, top_logprobs=21))["param"] == "top_logprobs"
    assert refused(send(http, CHAT, logprobs=3))["param"] == "logprobs"
    assert refused(send(http, CHAT, stream_options={"include_usage": True}))["param"] == "stream_options"


BROKEN = {
    "broken": b'{"model": "a", "prompt": ',
    "empty": b"",
    "spaces": b"   ",
    "list": b"[1, 2]",
    "text": b'"hello"',
    "number": b"5",
    "null": b"null",
    "nan": b'{"model": "a", "prompt": "x", "temperature": NaN}',
    "infinity": b'{"model": "a", "prompt": "x", "temperature": Infinity}',
    "latin1": b'{"model": "a", "prompt": "\xe9"}',
    "half utf-8": b'{"model": "a", "prompt": "\xe4\xbd"}',
    "raw surrogate": b'{"model": "a", "prompt": "\xed\xa0\x80"}',
    "lone surrogate": b'{"model": "a", "prompt": "\\ud800"}',
    "raw null": b'{"model": "a", "prompt": "a\x00b"}',
    "deep list": b'{"model": "a", "prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "deep object": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "comment": b'{"model": "a"} // hello',
    "nan in an ignored field": b'{"model": "a", "prompt": "x", "messages": [], "text": "x", "ids": [], "z": NaN}',
    "bom": b'\xef\xbb\xbf{"model": "a", "prompt": "x"',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=list(BROKEN))
@pytest.mark.parametrize("path", POSTS)
def test_a_broken_body_is_400(http: httpx.Client, path: str, content: bytes) -> None:
    refused(http.post(path, content=content, headers=JSON))


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_megabytes_are_refused_before_they_are_cut_into_tokens(http: httpx.Client, path: str) -> None:
    text = "the cat " * 300_000
    content = {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
    error = refused(send(http, path, **content))
    assert (error["param"], error["code"]) == (next(iter(content)), "context_length_exceeded")
    assert "characters" in error["message"]


def test_a_function_described_too_deeply_is_refused(http: httpx.Client) -> None:
    """What JSON's reader lets through is written again, where Python's own stack may end before."""
    tools = '[{"type": "function", "function": {"name": "f", "parameters": %s}}]' % ('{"a":' * 980 + "1" + "}" * 980)
    body = '{"model": "a", "messages": [{"role": "user", "content": "x"}], "tools": ' + tools + "}"
    refused(http.post(CHAT, content=body, headers=JSON))


def test_deep_metadata_is_no_reason_to_fall(http: httpx.Client) -> None:
    for field in ("metadata", "chat_template_kwargs", "tools", "response_format", "unknown"):
        value = b'{"a":' * 900 + b"1" + b"}" * 900
        body = b'{"model": "a", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}], "%s": %s}'
        answer = http.post(CHAT, content=body % (field.encode(), value), headers=JSON)
        assert answer.status_code in (200, 400), answer.text


def test_the_message_says_what_is_wrong_with_the_json(http: httpx.Client) -> None:
    error = refused(http.post(CHAT, content=b'{"model": "a",}', headers=JSON))
    assert "JSON" in error["message"]
    assert error["param"] is None
    assert "empty" in refused(http.post(CHAT, content=b"", headers=JSON))["message"]


def test_a_surrogate_is_refused_and_a_pair_of_them_is_a_character(http: httpx.Client) -> None:
    half, whole = b'{"model": "a", "text": "\\ud83d"}', b'{"model": "a", "text": "\\ud83d\\ude42"}'
    assert "surrogate" in refused(http.post("/v1/tokenize", content=half, headers=JSON))["message"]
    assert http.post("/v1/tokenize", content=whole, headers=JSON).json()["count"] == 4


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_of_another_type_is_told_which_to_use(http: httpx.Client, kind: str) -> None:
    error = refused(http.post(COMPLETIONS, content=b'{"model": "a", "prompt": "x"}', headers={"content-type": kind}))
    assert "application/json" in error["message"]


def test_a_charset_in_the_content_type_is_fine(http: httpx.Client) -> None:
    kind = {"content-type": "application/json; charset=utf-8"}
    assert http.post(COMPLETIONS, content=b'{"model": "a", "prompt": "x", "max_tokens": 1}', headers=kind).is_success


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_several_models_and_none_named_lists_them(http: httpx.Client, path: str) -> None:
    body = {"messages": USER, "prompt": "the"}
    error = refused(http.post(path, json=body))
    assert error["param"] == "model"
    assert "a, b" in error["message"]


def test_an_unknown_model_is_404(http: httpx.Client) -> None:
    for name in ("gpt-4", "", "../etc/passwd", "a\n", "\u202e"):
        error = refused(send(http, CHAT, model=name), 404)
        assert (error["param"], error["code"]) == ("model", "model_not_found")
    refused(http.get("/v1/models/none"), 404)
    refused(http.get("/v1/models/a/b"), 404)


def test_the_model_may_stand_in_the_query(http: httpx.Client) -> None:
    answer = http.post(f"{COMPLETIONS}?model=b", json={"prompt": "the", "max_tokens": 1})
    assert answer.json()["model"] == "b"
    assert http.post(f"{CHAT}?model=b", json={"messages": USER, "max_tokens": 1}).json()["model"] == "b"


def test_a_wrong_task_parameter_is_named_with_its_path(http: httpx.Client) -> None:
    body = {"model": "a", "inputs": "the cat", "parameters": {"temperature": -1}}
    assert refused(http.post("/v1/tasks/text-generation", json=body))["param"] == "parameters.temperature"
    body["parameters"] = {"colour": "red"}
    assert refused(http.post("/v1/tasks/text-generation", json=body))["param"] == "parameters.colour"
    body["parameters"] = {"max_new_tokens": 5000}
    assert refused(http.post("/v1/tasks/text-generation", json=body))["param"] == "parameters.max_new_tokens"
    refused(http.post("/v1/tasks/no-such-task", json={"inputs": "x"}), 404)


@pytest.mark.parametrize("inputs", [None, 5, [], [5], {}, "", "x", "a\0b", ["the cat", ""]], ids=str)
def test_perplexity_refuses_what_it_cannot_score(http: httpx.Client, inputs: object) -> None:
    error = refused(http.post("/v1/tasks/perplexity", json={"model": "a", "inputs": inputs}))
    assert re.split(r"[\[.]", error["param"])[0] == "inputs"


@pytest.fixture(scope="module")
def guarded(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one model, two keys and a small body limit."""
    flags = ("--max-body-size", "4KiB", "--dtype", "float32", "--kv-cache-memory", "16MiB")
    log = tmp_path_factory.mktemp("guarded") / "stderr"
    with serving(log, str(folders["a"]), *flags, env={"TREFOIL_API_KEY": "key-1 key-2"}) as running:
        yield running


def with_key(guarded: Server, key: str | None) -> httpx.Client:
    return httpx.Client(base_url=guarded.url, headers={"authorization": f"Bearer {key}"} if key else {}, timeout=60)


@pytest.mark.parametrize("key", [None, "wrong", "", "key-1 key-2", "key-1x"])
def test_a_request_without_a_valid_key_is_401(guarded: Server, key: str | None) -> None:
    with with_key(guarded, key) as http:
        for path in ("/v1/models", "/metrics", "/version", "/docs", "/v1/nothing"):
            error = refused(http.get(path), 401)
            assert error["code"] == "invalid_api_key"
        assert refused(http.post(CHAT, json={}), 401)["type"] == "authentication_error"
        assert http.get("/health").is_success
        assert http.get("/ready").is_success


def test_the_sdk_raises_its_own_class_for_a_wrong_key(guarded: Server) -> None:
    with (
        openai.OpenAI(base_url=guarded.base_url, api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


@pytest.mark.parametrize("key", ["key-1", "key-2"])
def test_every_valid_key_opens(guarded: Server, key: str) -> None:
    with with_key(guarded, key) as http:
        body = {"prompt": "the", "max_tokens": 1}
        assert http.post(COMPLETIONS, json=body).is_success  # one model: it need not be named
        assert http.get("/v1/models").is_success


def test_the_key_is_in_no_log(guarded: Server) -> None:
    assert not guarded.said("key-1")


@pytest.mark.parametrize("is_chunked", [False, True], ids=["announced", "chunked"])
@pytest.mark.parametrize("path", POSTS)
def test_a_body_over_the_limit_is_413(guarded: Server, path: str, is_chunked: bool) -> None:
    body = json.dumps({"prompt": "x" * 5000}).encode()
    content = iter([body[:100], body[100:]]) if is_chunked else body
    with with_key(guarded, "key-1") as http:
        error = refused(http.post(path, content=content, headers=JSON), 413)
        assert error["code"] == "body_too_large"
        assert "4096" in error["message"]
        assert http.get("/v1/models").is_success
