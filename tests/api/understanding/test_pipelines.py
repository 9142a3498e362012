"""Every task gives the numbers of transformers' pipeline on the same folder: each family, texts of all lengths."""

from pathlib import Path

import pytest
from transformers import pipeline

import tiny
import tiny_encoders
from api.understanding import local

FAMILIES = tuple(tiny_encoders.NAMES)
TEXTS = [
    "the cat sat on the mat",
    "dog",
    "one two three four five six seven eight nine ten",
    "你好，世界 😀 the quick brown fox jumps!",
    "The dog, the cat and zebras; " * 4,
]
NAMES = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}
LABELS = {0: "contradiction", 1: "neutral", 2: "entailment"}


def named(labels: dict[int, str]) -> dict:
    """Labels by number and number by label, as configs write them."""
    return {"id2label": labels, "label2id": {label: number for number, label in labels.items()}}


def theirs(task: str, folder: Path):
    return pipeline(task, model=tiny_encoders.oracle(folder), tokenizer=tiny_encoders.words(folder))


async def ask(folder: Path, task: str, inputs: object, **parameters: object) -> list:
    async with local.serving(model=folder) as http:
        answer = await http.post(f"/v1/tasks/{task}", json={"inputs": inputs, "parameters": parameters})
    assert answer.status_code == 200, answer.text
    return answer.json()


def same(ours: object, wanted: object) -> bool:
    """Equal, and numbers with a fraction within 1e-4."""
    if isinstance(wanted, dict):
        return ours.keys() == wanted.keys() and all(same(ours[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(ours) == len(wanted) and all(map(same, ours, wanted))
    return ours == wanted if isinstance(wanted, str | int) else abs(ours - float(wanted)) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
async def test_text_classification(tmp_path: Path, family: str) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, family, "ForSequenceClassification", id2label=LABELS)
    pair = {"text": TEXTS[0], "text_pair": TEXTS[2]}
    sort = theirs("text-classification", folder)
    texts = [*TEXTS[:4], pair]  # the fifth is longer than the model
    assert same(await ask(folder, "text-classification", texts), [sort(text, top_k=None) for text in texts])


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", "single_label_classification"])
async def test_scores_are_what_the_problem_asks_for(tmp_path: Path, problem: str) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "bert", "ForSequenceClassification", problem_type=problem)
    wanted = theirs("text-classification", folder)(TEXTS[0], top_k=None)
    assert same(await ask(folder, "text-classification", TEXTS[0]), [wanted])


@pytest.mark.parametrize("function", ["sigmoid", "none", "softmax"])
async def test_the_function_and_the_count_are_heeded(tmp_path: Path, function: str) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "bert", "ForSequenceClassification", id2label=LABELS)
    asked = {"top_k": 2, "function_to_apply": function}
    wanted = theirs("text-classification", folder)(TEXTS[0], **asked)
    assert same(await ask(folder, "text-classification", TEXTS[0], **asked), [wanted])


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("family", FAMILIES)
async def test_token_classification(tmp_path: Path, family: str) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, family, "ForTokenClassification", id2label=NAMES)
    tag = theirs("token-classification", folder)
    async with local.serving(model=folder) as http:
        for strategy in ("none", "simple", "first", "average", "max"):
            body = {"inputs": TEXTS, "parameters": {"aggregation_strategy": strategy}}
            ours = (await http.post("/v1/tasks/token-classification", json=body)).json()
            assert same(ours, [tag(text, aggregation_strategy=strategy) for text in TEXTS]), strategy


@pytest.mark.parametrize("ignored", [[], ["O", "PER"], ["LOC"]], ids=str)
async def test_ignored_labels_are_left_out(tmp_path: Path, ignored: list[str]) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "bert", "ForTokenClassification", id2label=NAMES)
    asked = {"aggregation_strategy": "simple", "ignore_labels": ignored}
    wanted = theirs("token-classification", folder)(TEXTS[4], **asked)
    assert same(await ask(folder, "token-classification", TEXTS[4], **asked), wanted)


@pytest.mark.parametrize("stride", [0, 7, 30])
async def test_long_texts_are_tagged_in_windows(tmp_path: Path, stride: int) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "bert", "ForTokenClassification", id2label=NAMES)
    asked = {"aggregation_strategy": "simple", "stride": stride}
    text = " ".join(TEXTS[:4] * 5)
    tag = pipeline(
        "token-classification",
        model=tiny_encoders.oracle(folder),
        tokenizer=tiny_encoders.words(folder),
        **asked,
    )
    assert same(await ask(folder, "token-classification", text, **asked), tag(text))


@pytest.mark.parametrize("family", FAMILIES)
async def test_fill_mask(tmp_path: Path, family: str) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, family, "ForMaskedLM")
    fill = theirs("fill-mask", folder)
    mask = fill.tokenizer.mask_token
    texts = [f"the {mask} sat on the mat", f"你好 {mask} 世界 {mask}, one two"]
    async with local.serving(model=folder) as http:
        for asked in ({}, {"top_k": 3}, {"targets": ["the", "cat", "nowhere"], "top_k": 2}):
            body = {"inputs": texts, "parameters": asked}
            ours = (await http.post("/v1/tasks/fill-mask", json=body)).json()
            assert same(ours, [fill(text, **asked) for text in texts]), asked


@pytest.mark.parametrize("family", ["bert", "roberta"])
async def test_another_tokenizers_mask_is_understood(tmp_path: Path, family: str) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, family, "ForMaskedLM")
    square, angle = [await ask(folder, "fill-mask", f"the {mask} sat") for mask in ("[MASK]", "<mask>")]
    assert square == angle


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("asked", [{}, {"multi_label": True}, {"hypothesis_template": "about {}"}], ids=str)
async def test_zero_shot_classification(tmp_path: Path, family: str, asked: dict) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, family, "ForSequenceClassification", **named(LABELS))
    labels = ["cats", "dogs", "numbers"]
    found = theirs("zero-shot-classification", folder)(TEXTS[0], labels, **asked)
    wanted = [{"label": name, "score": s} for name, s in zip(found["labels"], found["scores"], strict=True)]
    assert same(await ask(folder, "zero-shot-classification", TEXTS[0], candidate_labels=labels, **asked), wanted)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
async def test_a_decoders_class_head_reads_the_last_token_that_is_no_padding(tmp_path: Path, family: str) -> None:
    folder = tiny.checkpoint(tmp_path, family, head="ForSequenceClassification", num_labels=3, pad_token_id=tiny.EOS)
    texts = ["the cat", "the cat<|end|>", "one two three<|end|><|end|>"]
    sort = pipeline("text-classification", model=tiny_encoders.oracle(folder), tokenizer=tiny_encoders.words(folder))
    wanted = [sort(text, top_k=None) for text in texts]
    assert same(await ask(folder, "text-classification", texts), wanted)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
async def test_feature_extraction(tmp_path: Path, family: str) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, family, "Model")
    extract = theirs("feature-extraction", folder)
    assert same(await ask(folder, "feature-extraction", TEXTS[:4]), [extract(text) for text in TEXTS[:4]])
