"""Text classification over HTTP gives the labels and scores of transformers' pipeline."""

from pathlib import Path

import httpx
import pytest
from transformers import AutoTokenizer, pipeline

import tiny_encoders

TEXTS = ["the cat sat on the mat", "dog", "one two three four five six seven eight nine ten", "你好，世界 😀 the fox"]


@pytest.fixture(scope="session")
def theirs(folders: dict[str, Path]) -> object:
    """transformers' pipeline over the served folder."""
    model = tiny_encoders.oracle(folders["sorter"])
    return pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folders["sorter"]))


def ask(http: httpx.Client, inputs: object, **parameters: object) -> list:
    """The answer of the route, no model named."""
    answer = http.post("/v1/tasks/text-classification", json={"inputs": inputs, "parameters": parameters})
    assert answer.status_code == 200, answer.text
    return answer.json()


def assert_same_labels(ours: list[dict], theirs: list[dict]) -> None:
    assert [entry["label"] for entry in ours] == [entry["label"] for entry in theirs]
    assert [entry["score"] for entry in ours] == pytest.approx([entry["score"] for entry in theirs], abs=1e-4)


@pytest.mark.parametrize("text", TEXTS)
def test_scores_are_the_pipelines(http: httpx.Client, theirs, text: str) -> None:
    (ours,) = ask(http, text)
    assert_same_labels(ours, theirs(text, top_k=None))


def test_a_list_is_answered_in_order(http: httpx.Client, theirs) -> None:
    for ours, text in zip(ask(http, TEXTS), TEXTS, strict=True):
        assert_same_labels(ours, theirs(text, top_k=None))


def test_a_pair_is_read_as_a_pair(http: httpx.Client, theirs) -> None:
    pair = {"text": TEXTS[0], "text_pair": TEXTS[2]}
    (ours,) = ask(http, pair)
    assert_same_labels(ours, theirs(pair, top_k=None))


@pytest.mark.parametrize("function", ["sigmoid", "none", "softmax"])
def test_the_function_and_the_count_are_heeded(http: httpx.Client, theirs, function: str) -> None:
    (ours,) = ask(http, TEXTS[0], function_to_apply=function, top_k=2)
    assert_same_labels(ours, theirs(TEXTS[0], top_k=2, function_to_apply=function))


def test_a_model_that_cannot_is_told_so(http: httpx.Client) -> None:
    answer = http.post("/v1/tasks/text-classification", json={"inputs": "x", "model": "writer"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "wrong_task"
    assert answer.json()["error"]["param"] == "model"


def test_models_show_their_family_and_tasks(http: httpx.Client) -> None:
    shown = http.get("/v1/models/sorter").json()
    assert shown["family"] == "encoder"
    assert "text-classification" in shown["tasks"]
    assert "text-generation" not in shown["tasks"]


def test_no_model_that_can_is_said_so(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json={"model": "sorter", "messages": [{"role": "user", "content": "x"}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "wrong_task"


def test_the_only_model_for_a_task_needs_no_name(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"prompt": "the cat", "max_tokens": 1})
    assert answer.json()["model"] == "writer"
