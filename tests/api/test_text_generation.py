"""Hugging Face's text generation, asked by the unmodified `huggingface_hub.InferenceClient`."""

import json
import re
from collections.abc import Callable

import httpx
import pytest
from huggingface_hub import InferenceClient
from transformers import PreTrainedTokenizerFast

from e2e.serving import Server

PROMPT = "the cat sat on"
PATH = "/v1/tasks/text-generation"

Ask = Callable[..., object]


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client asks no one at all where the Hub is off, our own server neither."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def ask(server: Server) -> Ask:
    """text_generation of the model `a`."""
    return InferenceClient(model=f"{server.url}{PATH}?model=a", timeout=60).text_generation


def test_plain_text_is_what_completions_say(ask: Ask, http: httpx.Client) -> None:
    body = {"model": "a", "prompt": PROMPT, "temperature": 0, "max_tokens": 12}
    assert ask(PROMPT, max_new_tokens=12) == http.post("/v1/completions", json=body).json()["choices"][0]["text"]


def test_return_full_text_begins_with_the_prompt(ask: Ask) -> None:
    assert ask(PROMPT, max_new_tokens=5, return_full_text=True) == PROMPT + ask(PROMPT, max_new_tokens=5)


def test_details_name_every_token(ask: Ask, words: PreTrainedTokenizerFast) -> None:
    answer = ask(PROMPT, max_new_tokens=12, details=True, decoder_input_details=True, seed=3, do_sample=True)
    details = answer.details
    assert "".join(token.text for token in details.tokens if not token.special) == answer.generated_text
    assert all(token.logprob <= 0 for token in details.tokens)
    assert [token.id for token in details.prefill] == words.encode(PROMPT)
    assert details.seed == 3
    assert details.finish_reason in ("length", "eos_token")


def test_a_stream_is_the_whole_text_in_pieces(ask: Ask) -> None:
    options = {"max_new_tokens": 20, "seed": 5, "do_sample": True}
    assert "".join(ask(PROMPT, **options, stream=True)) == ask(PROMPT, **options)


def test_a_stream_with_details_ends_with_the_whole(ask: Ask) -> None:
    options = {"max_new_tokens": 20, "seed": 5, "do_sample": True}
    *chunks, last = ask(PROMPT, **options, stream=True, details=True)
    assert last.generated_text == ask(PROMPT, **options)
    assert last.details.generated_tokens <= 20
    assert last.details.finish_reason in ("length", "eos_token")
    assert all(chunk.generated_text is None and chunk.token.logprob <= 0 for chunk in chunks)


def test_stop_sequences_end_the_text(ask: Ask) -> None:
    free = ask(PROMPT, max_new_tokens=30, seed=3, do_sample=True)
    stop = free[10:13]
    answer = ask(PROMPT, max_new_tokens=30, seed=3, do_sample=True, stop=[stop], details=True)
    assert answer.details.finish_reason == "stop_sequence"
    assert answer.generated_text == free[: free.index(stop)]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"top_k": 3},
        {"top_p": 0.5},
        {"typical_p": 0.9},
        {"repetition_penalty": 1.2},
        {"truncate": 2},
    ],
    ids=str,
)
def test_parameters_are_taken_and_reproducible(ask: Ask, options: dict) -> None:
    first, second = (ask(PROMPT, max_new_tokens=8, seed=9, **options) for _ in range(2))
    assert first == second


def test_top_n_tokens_come_with_details(ask: Ask) -> None:
    details = ask(PROMPT, max_new_tokens=3, details=True, top_n_tokens=4).details
    assert [len(top) for top in details.top_tokens] == [4] * len(details.tokens)


def test_the_model_may_stand_in_the_body_or_the_query(http: httpx.Client) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 8}}
    by_query = http.post(f"{PATH}?model=b", json=body).json()
    assert by_query == http.post(PATH, json={**body, "model": "b"}).json()
    unnamed = http.post(PATH, json=body)
    assert unnamed.status_code == 400
    assert unnamed.json()["error"]["param"] == "model"


def test_a_list_of_inputs_is_a_list_of_answers_in_order(http: httpx.Client) -> None:
    texts, parameters = ["the cat", "one two three"], {"max_new_tokens": 6}
    many = http.post(f"{PATH}?model=a", json={"inputs": texts, "parameters": parameters}).json()
    alone = [http.post(f"{PATH}?model=a", json={"inputs": t, "parameters": parameters}).json() for t in texts]
    assert many == alone


@pytest.mark.parametrize("name", ["adapter_id", "best_of", "watermark"])
def test_what_is_not_there_yet_is_refused_by_name(http: httpx.Client, name: str) -> None:
    value = {"adapter_id": "x", "best_of": 3, "watermark": True}[name]
    answer = http.post(f"{PATH}?model=a", json={"inputs": PROMPT, "parameters": {name: value}})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == f"parameters.{name}"


def test_an_error_is_raised_with_its_message(server: Server) -> None:
    with pytest.raises(Exception, match="max_new_tokens"):
        InferenceClient(model=f"{server.url}{PATH}?model=a").text_generation(PROMPT, max_new_tokens=-1)


def test_a_grammar_is_kept(ask: Ask) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 20]}}, "required": ["n"]}
    strict = {**schema, "additionalProperties": False}
    for value, kind in ((strict, "json"), ({"name": "n", "schema": strict}, "json_schema")):
        text = ask(PROMPT, grammar={"type": kind, "value": value}, max_new_tokens=40, do_sample=True, seed=3)
        assert json.loads(str(text))["n"] in (1, 20)
    assert re.fullmatch("[0-9]{3}", str(ask(PROMPT, grammar={"type": "regex", "value": "[0-9]{3}"})))
