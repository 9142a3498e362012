"""What no task can be asked gets one clear error that names the field; what looks odd and is fine gets an answer."""

import httpx
import pytest

EMOJI = "Zoë 👩‍👩‍👧 去 naïve 😀!"


TAGGING, ZERO_SHOT, QUESTIONS = "token-classification", "zero-shot-classification", "question-answering"
LONG = "word " * 200_000
WRONG = [
    (QUESTIONS, {"inputs": {"question": "x", "context": LONG}}, "inputs.context"),
    (QUESTIONS, {"inputs": [{"question": "x", "context": "y"}, {"question": "x", "context": LONG}]}, "inputs"),
    (TAGGING, {"inputs": LONG, "parameters": {"aggregation_strategy": "simple", "stride": 2}}, "inputs"),
    ("text-classification", {"inputs": "a" * 3_000_000}, "inputs"),
    ("fill-mask", {"inputs": "no mask here"}, "inputs"),
    ("fill-mask", {"inputs": ""}, "inputs"),
    ("fill-mask", {"inputs": "word " * 200 + "[MASK]"}, "inputs"),
    ("fill-mask", {"inputs": "a [MASK]", "model": "tagger"}, "model"),
    ("text-classification", {"inputs": []}, "inputs"),
    ("feature-extraction", {"inputs": "x", "prompt_name": "query"}, "prompt_name"),
    ("sentence-similarity", {"inputs": {"source_sentence": "x", "sentences": []}}, "inputs.sentences"),
    ("next-sentence-prediction", {"inputs": {"text": "x"}}, "inputs.text_pair"),
    (QUESTIONS, {"inputs": {"question": "", "context": "x"}}, "inputs.question"),
    (QUESTIONS, {"inputs": {"question": "x"}}, "inputs.context"),
    ("perplexity", {"inputs": "the cat"}, "model"),
]
WRONG_PARAMETERS = [
    ("fill-mask", "a [MASK]", {"top_k": 100000}, "top_k"),
    ("fill-mask", "a [MASK]", {"targets": []}, "targets"),
    (TAGGING, "x", {"aggregation_strategy": "best"}, "aggregation_strategy"),
    (TAGGING, "x", {"aggregation_strategy": "none", "stride": 2}, "stride"),
    (TAGGING, "x " * 99, {"aggregation_strategy": "simple", "stride": 99}, "stride"),
    (ZERO_SHOT, "x", {"candidate_labels": []}, "candidate_labels"),
    (ZERO_SHOT, "x", {"candidate_labels": ["a"], "hypothesis_template": "no place"}, "hypothesis_template"),
    ("text-classification", "x", {"top_k": 0}, "top_k"),
    ("text-classification", "x", {"colour": 1}, "colour"),
]


@pytest.mark.parametrize(
    ("task", "body", "param"),
    [
        *WRONG,
        *(
            (task, {"inputs": text, "parameters": given}, f"parameters.{name}")
            for task, text, given, name in WRONG_PARAMETERS
        ),
    ],
    ids=lambda value: str(value)[:80],
)
def test_it_is_said_what_is_wrong(http: httpx.Client, task: str, body: dict, param: str) -> None:
    answer = http.post(f"/v1/tasks/{task}", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param, answer.text


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"model": "filler", "input": ""}, "input"),
        ("/v1/embeddings", {"model": "filler", "input": []}, "input"),
        ("/v1/embeddings", {"model": "filler", "input": "x " * 500}, "input"),
        ("/v1/embeddings", {"model": "filler", "input": [9999999]}, "input"),
        ("/v1/embeddings", {"model": "filler", "input": "x", "dimensions": 4096}, "dimensions"),
        ("/v1/rerank", {"model": "filler", "query": "x", "documents": []}, "documents"),
        ("/embed", {"inputs": "x " * 500, "model": "filler"}, "inputs"),
        ("/predict", {"inputs": "x", "model": "reader"}, "model"),
    ],
    ids=str,
)
def test_other_routes_say_it_too(http: httpx.Client, path: str, body: dict, param: str) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param, answer.text


@pytest.mark.parametrize("text", ["", " ", "word " * 200_000, "你好" * 100_000], ids=["empty", "blank", "words", "han"])
def test_no_text_and_a_megabyte_are_answered(http: httpx.Client, text: str) -> None:
    for task in ("text-classification", "token-classification"):
        answer = http.post(f"/v1/tasks/{task}", json={"inputs": text})
        assert answer.status_code == 200, answer.text


def test_places_count_characters_whatever_the_script(http: httpx.Client) -> None:
    body = {"inputs": EMOJI, "parameters": {"ignore_labels": []}}
    tokens = http.post("/v1/tasks/token-classification", json=body).json()
    said = {at for one in tokens for at in range(one["start"], one["end"])}
    assert said == {at for at, letter in enumerate(EMOJI) if letter != " "}


def test_two_models_for_a_task_must_be_told_apart(http: httpx.Client) -> None:
    answer = http.post("/v1/tasks/perplexity", json={"inputs": "the cat"})
    assert "writer" in answer.json()["error"]["message"]
    assert "filler" in answer.json()["error"]["message"]


def test_many_texts_at_once_are_one_request(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", json={"model": "filler", "input": ["the cat"] * 700})
    assert len(answer.json()["data"]) == 700
