"""A job of every method that teaches a head or plain text: from rows to a folder that transformers reads as we do."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny
import tiny_encoders
import tiny_pairs
from training.bench import Bench
from trefoil.rows import RowError
from trefoil.store.jobs import State
from trefoil.training.plain_text import sentence_pairs
from trefoil.training.sources import Sources

GOOD, BAD = ("the cat sat on the mat", "one two three"), ("the dog sat on the cat", "eight nine ten")
CLASSES = [{"text": text, "label": label} for texts, label in ((GOOD, "yes"), (BAD, "no")) for text in texts]


def theirs(folder: Path, text: str, pair: str | None = None) -> torch.Tensor:
    """What transformers' model of the folder says of a text."""
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
    words = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    with torch.no_grad():
        return model(**words(text, pair, return_tensors="pt"))


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "distilbert", "llama"])
def test_classes_are_learnt_and_named(bench: Bench, tmp_path: Path, family: str) -> None:
    if family == "llama":
        base = tiny.checkpoint(tmp_path / "base", family, std=0.1)
    else:
        base = tiny_encoders.checkpoint(tmp_path / "base", family, "ForMaskedLM")
    gently = {"learning_rate": 2e-3, "n_epochs": 60} if family == "albert" else {}  # its layers share their weights
    folder = bench.folder_of(bench.run(base, "classification", CLASSES, **gently))
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "no", "1": "yes"}
    for row in CLASSES:
        assert int(theirs(folder, row["text"]).logits.argmax()) == int(row["label"] == "yes")


def test_several_classes_and_numbers_are_learnt(bench: Bench, tmp_path: Path) -> None:
    base = tiny_encoders.checkpoint(tmp_path / "base", "bert", "ForMaskedLM")
    rows = [{"text": GOOD[0], "label": ["a", "b"]}, {"text": BAD[0], "label": ["b", "c"]}]
    folder = bench.folder_of(bench.run(base, "classification", rows))
    assert (theirs(folder, GOOD[0]).logits[0] > 0).tolist() == [True, True, False]
    numbers = [{"text": GOOD[0], "label": 0.75}, {"text": BAD[0], "label": -0.5}]
    folder = bench.folder_of(bench.run(base, "classification", numbers))
    assert float(theirs(folder, GOOD[0]).logits) == pytest.approx(0.75, abs=0.1)


def test_head_with_the_same_labels_is_kept(bench: Bench, tmp_path: Path) -> None:
    base = tiny_encoders.checkpoint(tmp_path / "base", "bert", "ForMaskedLM")
    first = bench.run(base, "classification", CLASSES)
    again = bench.run(bench.folder_of(first), "classification", CLASSES)
    assert bench.losses(again)[0] < 0.2 < 0.5 < bench.losses(first)[0]


def test_tags_of_words_are_learnt(bench: Bench, tmp_path: Path) -> None:
    base = tiny_encoders.checkpoint(tmp_path / "base", "bert", "ForMaskedLM")
    rows = [
        {"tokens": ["the", "cat", "sat"], "tags": ["O", "B-ANIMAL", "O"]},
        {"tokens": ["the", "dog", "sat", "on"], "tags": ["O", "B-ANIMAL", "O", "O"]},
    ]
    folder = bench.folder_of(bench.run(base, "token_classification", rows))
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "O", "1": "B-ANIMAL"}
    words = transformers.PreTrainedTokenizerFast.from_pretrained(folder)("the cat sat").tokens()
    tags = dict(zip(words, theirs(folder, "the cat sat").logits[0].argmax(-1).tolist(), strict=True))
    assert (tags["the"], tags["cat"], tags["sat"]) == (0, 1, 0)


def test_answers_are_found(bench: Bench, tmp_path: Path) -> None:
    base = tiny_encoders.checkpoint(tmp_path / "base", "bert", "ForMaskedLM")
    context = "the cat sat on the mat"
    asked = [("cat", "the cat", 0), ("dog", "the mat", 15), ("ten", None, 0)]
    rows = [
        {
            "question": question,
            "context": context,
            "answers": {"text": [answer] if answer else [], "answer_start": [start] if answer else []},
        }
        for question, answer, start in asked
    ]
    folder = bench.folder_of(bench.run(base, "question_answering", rows))
    words = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    for question, answer, _ in asked:
        found = theirs(folder, question, context)
        ids = words(question, context)["input_ids"]
        start, end = int(found.start_logits.argmax()), int(found.end_logits.argmax())
        assert words.decode(ids[start : end + 1]) == (answer or "[CLS]")


def test_reward_model_prefers_what_people_prefer(bench: Bench, tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base", "llama", std=0.1)
    rows = [{"prompt": "say", "chosen": " one two", "rejected": " eight nine"}] * 4
    folder = bench.folder_of(bench.run(base, "reward", rows))
    good, bad = (float(theirs(folder, f"say{answer}<|end|>").logits) for answer in (" one two", " eight nine"))
    assert good > bad + 1


@pytest.mark.parametrize(
    ("family", "objective", "architecture"),
    [
        ("bert", "mlm", "BertForMaskedLM"),
        ("bert", "mlm+nsp", "BertForPreTraining"),
        ("albert", "mlm+sop", "AlbertForPreTraining"),
        ("t5", "span_corruption", "T5ForConditionalGeneration"),
        ("bart", "text_infilling", "BartForConditionalGeneration"),
        ("gpt2", "clm", "GPT2LMHeadModel"),
    ],
)
def test_plain_text_is_learnt_by_every_kind(
    bench: Bench, tmp_path: Path, family: str, objective: str, architecture: str
) -> None:
    makers: dict[str, Any] = {"gpt2": tiny.checkpoint, "t5": tiny_pairs.checkpoint, "bart": tiny_pairs.checkpoint}
    marks = {"t5": tiny_pairs.add_sentinels, "bart": tiny_pairs.add_mask}
    if family in makers:
        base = makers[family](tmp_path / "base", family)
        if family in marks:
            marks[family](base)
    else:
        base = tiny_encoders.checkpoint(tmp_path / "base", family, "ForMaskedLM")
    rows = [{"text": ". ".join(GOOD)}, {"text": ". ".join(BAD)}] * 2
    job = bench.run(base, "pretrain", rows, objective=objective, lora=None, n_epochs=60)
    folder = bench.folder_of(job)
    assert json.loads((folder / "config.json").read_text())["architectures"] == [architecture]
    losses = bench.losses(job)
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


@pytest.mark.parametrize(
    ("method", "rows", "cause"),
    [
        ("classification", [*CLASSES, {"text": "a"}], "line 5: it has no label"),
        (
            "classification",
            [*CLASSES, {"text": "a", "label": ["yes"]}, {"text": "a", "label": 1.5}],
            "is none of|label",
        ),
        ("token_classification", CLASSES, "line 1: it has no tags"),
        ("question_answering", CLASSES, "line 1: it is no question"),
        ("pretrain", CLASSES, "line 1: it has no plain text"),
        ("classification", [{"text": "cat " * 80, "label": "a"}], r"line 1: \d+ tokens, the limit is"),
    ],
)
def test_bad_line_fails_the_job_by_name(
    bench: Bench, tmp_path: Path, method: str, rows: list[dict[str, Any]], cause: str
) -> None:
    base = tiny_encoders.checkpoint(tmp_path / "base", "bert", "ForMaskedLM")
    given = {"objective": "mlm", "lora": None} if method == "pretrain" else {}
    job = bench.run(base, method, rows, **given)
    assert (job.state, (job.error or {})["code"]) == (State.FAILED, "invalid_training_file")
    assert re.search(cause, (job.error or {})["message"]), job.error


def test_wrong_next_sentences_come_from_another_text_and_swapped_ones_from_the_same(
    bench: Bench, tmp_path: Path
) -> None:
    base = tiny_encoders.checkpoint(tmp_path / "base", "bert", "ForMaskedLM")
    job = bench.run(base, "pretrain", [{"text": "one. two."}, {"text": "the cat."}], objective="mlm+nsp", lora=None)
    reader = Sources.open(bench.store, job.spec).reader
    texts = [
        " ".join(f"one {word}." for word in ("two", "three", "four", "five", "six", "seven", "eight", "nine")),
        " ".join(f"the {word}." for word in ("cat", "dog", "mat", "quick", "brown", "fox", "lazy", "jumps")),
    ]
    for swaps in (False, True):
        pairs = list(sentence_pairs(texts, reader, seed=1, swaps=swaps))
        said: dict[int, list[str]] = {0: [], 1: []}
        for pair in pairs:
            said[pair.label].append(reader.tokenizer.decode(pair.ids))
        assert said[0]
        assert said[1]
        assert not set(said[0]) & set(said[1])
        assert all(("one" in text and "the" in text) == (not swaps) for text in said[1])
    with pytest.raises(RowError, match="two sentences"):
        list(sentence_pairs(["one"], reader, seed=1, swaps=True))
