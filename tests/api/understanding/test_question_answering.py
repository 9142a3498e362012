"""Question answering as transformers' pipeline did it until version 4: held to a plain enumeration of every span."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_encoders
from api.understanding import local

QUESTION = "where is the cat?"
SHORT = "The cat sat on the mat. The dog, 你好世界 😀, sat on the cat."
LONG = "One two three four five six seven eight nine ten, the quick brown fox jumps over the lazy dog. " * 4


def enumerated(folder: Path, context: str, *, top_k: int, longest: int, doc_stride: int, nulls: bool) -> list[dict]:
    """Every span of every window by P(start) P(end); equal words are counted together, words are never cut."""
    words, model = tiny_encoders.words(folder), tiny_encoders.oracle(folder)
    windows = words(
        QUESTION,
        context,
        truncation="only_second",
        max_length=tiny_encoders.LONGEST,
        stride=doc_stride,
        return_overflowing_tokens=True,
    )
    found: dict[str, dict] = {}
    null = 1e9
    for n, ids in enumerate(windows["input_ids"]):
        given = {name: torch.tensor([windows[name][n]]) for name in words.model_input_names if name in windows}
        with torch.no_grad():
            out = model(**given)
        free = np.array(
            [of == 1 or i == words.cls_token_id for of, i in zip(windows.sequence_ids(n), ids, strict=True)]
        )
        start, end = (
            torch.where(torch.tensor(free), logits[0], -1e4).softmax(-1).tolist()
            for logits in (out.start_logits, out.end_logits)
        )
        null = min(null, start[0] * end[0])
        spans = [(i, j) for i, j in product(np.flatnonzero(free), repeat=2) if 0 <= j - i < longest and i]
        for i, j in sorted(spans, key=lambda span: -start[span[0]] * end[span[1]])[: 2 * top_k + 10]:
            encoding = windows[n]
            begin = encoding.word_to_chars(encoding.token_to_word(int(i)), sequence_index=1)[0]
            stop = encoding.word_to_chars(encoding.token_to_word(int(j)), sequence_index=1)[1]
            entry = found.setdefault(context[begin:stop].lower(), {"score": 0.0, "start": begin, "end": stop})
            entry.setdefault("answer", context[begin:stop])
            entry["score"] += start[i] * end[j]
    answers = [*found.values(), *([{"score": null, "start": 0, "end": 0, "answer": ""}] if nulls else [])]
    return sorted(answers, key=lambda entry: -entry["score"])[:top_k]


@pytest.mark.parametrize("family", tuple(tiny_encoders.NAMES))
async def test_answers_are_those_of_the_enumeration(tmp_path: Path, family: str) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, family, "ForQuestionAnswering")
    async with local.serving(model=folder) as http:
        for context, top_k, longest, nulls, stride in (
            (SHORT, 1, 15, False, 30),
            (SHORT, 3, 4, True, 30),
            (LONG, 1, 15, True, 10),
            (LONG, 4, 6, False, 20),
        ):
            parameters = {"top_k": top_k, "max_answer_len": longest, "handle_impossible_answer": nulls}
            body = {"inputs": {"question": QUESTION, "context": context}, "parameters": parameters}
            body["parameters"]["doc_stride"] = stride
            ours = (await http.post("/v1/tasks/question-answering", json=body)).json()
            wanted = enumerated(folder, context, top_k=top_k, longest=longest, doc_stride=stride, nulls=nulls)
            for own, entry in zip(ours if top_k > 1 else [ours], wanted, strict=True):
                assert own["score"] == pytest.approx(entry["score"], abs=1e-4), json.dumps(parameters)
                assert {**own, "score": 0} == {**entry, "score": 0}


async def test_a_list_of_questions_is_answered_in_order(tmp_path: Path) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "bert", "ForQuestionAnswering")
    asked = [{"question": QUESTION, "context": context} for context in (SHORT, LONG)]
    async with local.serving(model=folder) as http:
        both = (await http.post("/v1/tasks/question-answering", json={"inputs": asked})).json()
        each = [(await http.post("/v1/tasks/question-answering", json={"inputs": one})).json() for one in asked]
    assert [one["answer"] for one in both] == [one["answer"] for one in each]


async def test_answers_are_at_their_places(tmp_path: Path) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "roberta", "ForQuestionAnswering")
    asked = {"inputs": {"question": "谁？", "context": SHORT}, "parameters": {"top_k": 8, "align_to_words": False}}
    async with local.serving(model=folder) as http:
        answers = (await http.post("/v1/tasks/question-answering", json=asked)).json()
    assert len(answers) > 1
    for answer in answers:
        assert answer["answer"] == SHORT[answer["start"] : answer["end"]]


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"doc_stride": 500}, "parameters.doc_stride"),
        ({"doc_stride": 60}, "inputs.question"),
        ({"top_k": 0}, "parameters.top_k"),
    ],
    ids=str,
)
async def test_bad_parameters_are_named(tmp_path: Path, parameters: dict, param: str) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "bert", "ForQuestionAnswering")
    body = {"inputs": {"question": QUESTION, "context": LONG}, "parameters": parameters}
    async with local.serving(model=folder) as http:
        answer = await http.post("/v1/tasks/question-answering", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
