"""/v1/tokenize and /v1/detokenize: the model's tokens as its own tokenizer sees them."""

import httpx
import pytest
from transformers import PreTrainedTokenizerFast

from api.test_errors import refused

USER = [{"role": "user", "content": "the cat"}]


@pytest.mark.parametrize("text", ["the cat sat", "你好,世界", "", "a <|end|> b", "🙂 ok"], ids=ascii)
def test_text_becomes_ids_and_comes_back(http: httpx.Client, words: PreTrainedTokenizerFast, text: str) -> None:
    found = http.post("/v1/tokenize", json={"model": "a", "text": text}).json()
    assert found["ids"] == words.encode(text)
    assert found["count"] == len(found["ids"]) == len(found["tokens"]) == len(found["offsets"])
    body = {"model": "a", "ids": found["ids"], "skip_special_tokens": False}
    assert http.post("/v1/detokenize", json=body).json() == {"text": text}


def test_messages_go_through_the_chat_template(http: httpx.Client, words: PreTrainedTokenizerFast) -> None:
    found = http.post("/v1/tokenize", json={"model": "a", "messages": USER}).json()
    assert found["ids"] == words.apply_chat_template(USER, add_generation_prompt=True, return_dict=False)
    asked = {"model": "a", "messages": USER, "max_tokens": 1}
    assert http.post("/v1/chat/completions", json=asked).json()["usage"]["prompt_tokens"] == found["count"]


def test_special_tokens_are_left_out_on_demand(http: httpx.Client) -> None:
    body = {"model": "a", "ids": [0, 1, 2]}
    assert http.post("/v1/detokenize", json=body).json() == {"text": ""}
    assert http.post("/v1/detokenize", json={**body, "skip_special_tokens": False}).json()["text"].startswith("<|end|>")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": "a", "messages": USER}, "messages"),
        ({"text": 5}, "text"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"text": "a", "colour": "red"}, "colour"),
    ],
)
def test_a_wrong_field_is_named(http: httpx.Client, body: dict, param: str) -> None:
    answer = http.post("/v1/tokenize", json={"model": "a", **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("ids", [[300], [-1], [2**70], ["1"], 5, [1.5]], ids=str)
def test_ids_out_of_range_are_refused(http: httpx.Client, ids: object) -> None:
    answer = http.post("/v1/detokenize", json={"model": "a", "ids": ids})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("ids")


def test_the_model_may_stand_in_the_query(http: httpx.Client) -> None:
    assert http.post("/v1/tokenize?model=a", json={"text": "the"}).status_code == 200
    assert http.post("/v1/detokenize?model=a", json={"ids": [5]}).status_code == 200


def test_what_takes_seconds_to_be_cut_is_refused(http: httpx.Client) -> None:
    for path, field in (("/v1/tokenize", "text"), ("/tokenize", "inputs")):
        assert refused(http.post(path, params={"model": "a"}, json={field: "a" * 1_000_001}))["param"] == field
