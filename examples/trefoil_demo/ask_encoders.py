"""The held-out test of the demo encoders asked over HTTP, of whichever served model can do a task."""

from collections.abc import Sequence
from typing import Any

import httpx

from trefoil_demo.understanding import Answerers, Entity

BATCH = 64


def http_answerers(client: httpx.Client) -> Answerers:
    """The four tasks by the server's routes."""
    return Answerers(
        fill=lambda cases: _fill(client, cases),
        sentiment=lambda texts: [labels[0]["label"] for labels in _ask(client, "text-classification", texts)],
        entities=lambda texts: [_entities(found) for found in _ask(client, "token-classification", texts, simple=True)],
        answers=lambda cases: [answer["answer"] for answer in _ask(client, "question-answering", _questions(cases))],
    )


def _ask(client: httpx.Client, task: str, inputs: Sequence[Any], *, simple: bool = False) -> list[Any]:
    """Answers in order, some at a time."""
    answers: list[Any] = []
    for start in range(0, len(inputs), BATCH):
        parameters = {"aggregation_strategy": "simple"} if simple else {}
        body = {"inputs": inputs[start : start + BATCH], "parameters": parameters}
        answers += client.post(f"/v1/tasks/{task}", json=body).raise_for_status().json()
    return answers


def _questions(cases: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"question": question, "context": context} for question, context in cases]


def _entities(found: list[dict[str, Any]]) -> list[Entity]:
    return [(entity["entity_group"], entity["start"], entity["end"]) for entity in found]


def _fill(client: httpx.Client, cases: Sequence[tuple[str, tuple[int, int]]]) -> list[str]:
    """The likeliest token for each mask; a word has as many masks as it has tokens."""
    model = _model(client, "fill-mask")
    texts = []
    for text, (start, end) in cases:
        asked = {"text": text[start:end], "model": model, "add_special_tokens": False}
        count = client.post("/v1/tokenize", json=asked).raise_for_status().json()["count"]
        texts.append(text[:start] + "[MASK]" * count + text[end:])
    return [_joined(client, model, found) for found in _ask(client, "fill-mask", texts)]


def _joined(client: httpx.Client, model: str, found: list[Any]) -> str:
    masks = found if isinstance(found[0], list) else [found]
    body = {"ids": [mask[0]["token"] for mask in masks], "model": model}
    text: str = client.post("/v1/detokenize", json=body).raise_for_status().json()["text"]
    return text


def _model(client: httpx.Client, task: str) -> str:
    """The served model that can do a task."""
    listed = client.get("/v1/models").raise_for_status().json()["data"]
    name: str = next(entry["id"] for entry in listed if task in entry["tasks"])
    return name
