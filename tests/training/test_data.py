"""Rows become examples whose labels are exactly what the model must learn to say."""

import json
from pathlib import Path

import pytest

import tiny
from trefoil.training.batch import Example
from trefoil.training.data import RowError, chat_example, text_examples
from trefoil_models.tokenizer import Tokenizer

END_ID = tiny.EOS
CHAT = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "what is 1?"},
    {"role": "assistant", "content": "一 is 1"},
    {"role": "user", "content": "the answer?"},
    {"role": "assistant", "content": "yes <b>"},
]


def learned(example: Example, tokenizer: Tokenizer) -> str:
    ids = [i for i, is_label in zip(example.ids, example.is_label, strict=True) if is_label]
    return tokenizer.decode(ids, skip_special_tokens=False)


def with_template(tokenizer: Tokenizer, folder: Path, template: str) -> Tokenizer:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "chat_template": template}), "utf-8")
    return Tokenizer.load(folder)


def test_labels_are_the_answers_with_their_end_token_only(tokenizer: Tokenizer) -> None:
    example = chat_example(CHAT, tokenizer, end_ids={END_ID}, longest=200)
    assert learned(example, tokenizer) == "一 is 1<|end|>yes <b><|end|>"
    assert tokenizer.decode(example.ids, skip_special_tokens=False) == tokenizer.render_chat(
        CHAT, add_generation_prompt=False
    )


def test_labels_need_no_special_markers_in_the_template(tokenizer: Tokenizer, folder: Path) -> None:
    plain = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    example = chat_example(CHAT, with_template(tokenizer, folder, plain), end_ids={END_ID}, longest=200)
    assert learned(example, tokenizer) == "一 is 1\nyes <b>\n"


def test_a_template_that_rewrites_earlier_answers_is_refused(tokenizer: Tokenizer, folder: Path) -> None:
    forgetful = "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(RowError, match="message 2"):
        chat_example(CHAT, with_template(tokenizer, folder, forgetful), end_ids={END_ID}, longest=200)


def test_a_chat_with_nothing_to_learn_or_too_long_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(RowError, match="without an assistant"):
        chat_example(CHAT[:2], tokenizer, end_ids={END_ID}, longest=200)
    with pytest.raises(RowError, match="the limit is 8"):
        chat_example(CHAT, tokenizer, end_ids={END_ID}, longest=8)


@pytest.mark.parametrize("window", [1, 3, 100])
def test_windows_predict_every_token_once_with_eos_between_texts(tokenizer: Tokenizer, window: int) -> None:
    ids = [*tokenizer.encode_ids("one"), 0, *tokenizer.encode_ids("two 二"), 0]
    examples = list(text_examples(["one", "two 二"], tokenizer, window=window, eos_id=0))
    assert [i for example in examples for i in example.ids[1:]] == ids[1:]
    assert all(all(example.is_label[1:]) and len(example) <= window for example in examples)
