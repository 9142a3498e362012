"""Rows become examples whose labels are exactly what the model must learn to say."""

import json
from pathlib import Path

import pytest

import tiny
from trefoil.hyperparameters import METHODS
from trefoil.rows import Chat, Continuation, Line, Preference, Row, RowError
from trefoil.training.batch import Example
from trefoil.training.data import Reader, chat_example, continuation_example, pair_of, text_examples
from trefoil.training.readers import examples_of
from trefoil_models.tokenizer import Tokenizer

END_ID = tiny.EOS
CHAT = (
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "what is 1?"},
    {"role": "assistant", "content": "一 is 1"},
    {"role": "user", "content": "the answer?"},
    {"role": "assistant", "content": "yes <b>"},
)


def learned(example: Example, tokenizer: Tokenizer) -> str:
    ids = [i for i, is_label in zip(example.ids, example.is_label, strict=True) if is_label]
    return tokenizer.decode(ids, skip_special_tokens=False)


def with_template(tokenizer: Tokenizer, folder: Path, template: str) -> Tokenizer:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "chat_template": template}), "utf-8")
    return Tokenizer.load(folder)


def reading(tokenizer: Tokenizer, longest: int = 200, **options: bool) -> Reader:
    return Reader(tokenizer, (END_ID,), longest, **options)


def test_labels_are_the_answers_with_their_end_token_only(tokenizer: Tokenizer) -> None:
    example = chat_example(Chat(CHAT), reading(tokenizer))
    assert learned(example, tokenizer) == "一 is 1<|end|>yes <b><|end|>"
    assert tokenizer.decode(example.ids, skip_special_tokens=False) == tokenizer.render_chat(
        CHAT, add_generation_prompt=False
    )


def test_labels_need_no_special_markers_and_an_open_end_is_closed(tokenizer: Tokenizer, folder: Path) -> None:
    plain = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    example = chat_example(Chat(CHAT), reading(with_template(tokenizer, folder, plain)))
    assert learned(example, tokenizer) == "一 is 1\nyes <b>\n<|end|>"


def test_a_message_of_weight_0_is_not_learned(tokenizer: Tokenizer) -> None:
    chat = Chat((*CHAT[:2], {**CHAT[2], "weight": 0}, *CHAT[3:]))
    assert learned(chat_example(chat, reading(tokenizer)), tokenizer) == "yes <b><|end|>"


def test_a_continuation_is_learned_with_its_end(tokenizer: Tokenizer) -> None:
    example = continuation_example(Continuation("the cat", " sat 一"), reading(tokenizer))
    assert learned(example, tokenizer) == " sat 一<|end|>"


def test_only_the_answers_of_a_pair_are_compared(tokenizer: Tokenizer) -> None:
    rejected = Chat((*CHAT[:4], {"role": "assistant", "content": "no"}))
    pair = pair_of(Preference(Chat(CHAT), rejected, num_shared=4), reading(tokenizer))
    assert [learned(example, tokenizer) for example in pair] == ["yes <b><|end|>", "no<|end|>"]
    plain = pair_of(Preference(Continuation("a", " b"), Continuation("a", " c")), reading(tokenizer))
    assert [learned(example, tokenizer) for example in plain] == [" b<|end|>", " c<|end|>"]


def test_a_template_that_rewrites_earlier_answers_is_refused(tokenizer: Tokenizer, folder: Path) -> None:
    forgetful = "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(RowError, match="message 2"):
        chat_example(Chat(CHAT), reading(with_template(tokenizer, folder, forgetful)))


ALL_MASKED = Chat((*CHAT[:2], {**CHAT[2], "weight": 0}))


@pytest.mark.parametrize(
    ("method", "row", "cause"),
    [
        ("supervised", Chat(CHAT[:2]), "nothing to learn"),
        ("supervised", ALL_MASKED, "nothing to learn"),
        ("supervised", Chat(CHAT * 20), "the limit is 200"),
        ("supervised", Preference(Continuation("a", "b"), Continuation("a", "c")), "no answer to learn"),
        ("dpo", Chat(CHAT), "no two answers"),
        ("dpo", Preference(Chat(CHAT[:3]), Chat(CHAT[:3] * 30), 2), "the limit is 200"),
        ("pretrain", Chat(CHAT), "no plain text"),
    ],
)
def test_a_row_that_cannot_be_learned_is_named(tokenizer: Tokenizer, method: str, row: Row, cause: str) -> None:
    with pytest.raises(RowError, match=f"^a.jsonl, line 7: .*{cause}"):
        list(examples_of(METHODS[method](), [Line("a.jsonl", 7, row)], reading(tokenizer)))


def test_a_long_chat_is_cut_only_where_that_is_asked_for(tokenizer: Tokenizer) -> None:
    whole = chat_example(Chat(CHAT), reading(tokenizer))
    cut = chat_example(Chat(CHAT), reading(tokenizer, 30, truncates=True))
    assert cut.ids == whole.ids[:30]
    with pytest.raises(RowError, match="no token of an answer is left"):
        chat_example(Chat(CHAT), reading(tokenizer, 5, truncates=True))


@pytest.mark.parametrize("window", [1, 3, 100])
def test_windows_predict_every_token_once_with_eos_between_texts(tokenizer: Tokenizer, window: int) -> None:
    ids = [*tokenizer.encode_ids("one"), 0, *tokenizer.encode_ids("two 二"), 0]
    examples = list(text_examples(["one", "two 二"], tokenizer, window=window, eos_id=0))
    assert [i for example in examples for i in example.ids[1:]] == ids[1:]
    assert all(all(example.is_label[1:]) and len(example) <= window for example in examples)
