"""Chats of families whose folders hold no template, against what their published code does with sentencepiece."""

import json
from pathlib import Path

import pytest

from trefoil.rows import Chat, Continuation, RowError
from trefoil.training.data import Reader, chat_example, continuation_example
from trefoil_models.chat_template import ChatTemplateError
from trefoil_models.tokenizer import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece")

CORPUS = ["the sophomore sat on the sofa, hi there", "[Round 1] 问：你好 答：你好", "line one\nline two <|user|>"] * 8
MESSAGES = (
    {"role": "user", "content": "hi <|user|> [gMASK]sop</s>"},
    {"role": "assistant", "content": "the sofa"},
    {"role": "user", "content": "你好"},
)
MASKS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
SPEAKERS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(tmp_path / "tokenizer"), vocab_size=400, num_threads=1,
        hard_vocab_limit=False, model_type="bpe", byte_fallback=True, minloglevel=2, remove_extra_whitespaces=False,
        normalization_rule_name="identity",
    )  # fmt: skip
    about(tmp_path, "chatglm3-6b")
    return tmp_path


def about(folder: Path, name: str, **more: object) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "chatglm", "_name_or_path": f"THUDM/{name}"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ChatGLMTokenizer", **more}))
    return folder


def original(folder: Path) -> "sentencepiece.SentencePieceProcessor":
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


BLANKS = [f"<|blank_{length}|>" for length in range(2, 81)]


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """ChatGLM-6B's file, with seven ids for images."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(tmp_path / "ice_text"), vocab_size=360, num_threads=1,
        hard_vocab_limit=False, model_type="bpe", minloglevel=2, remove_extra_whitespaces=False, pad_id=3,
        user_defined_symbols=["<n>", "<|tab|>", *BLANKS], control_symbols=["[MASK]", "[gMASK]", "<sop>", "<eop>"],
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chatglm", "position_encoding_2d": True}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"num_image_tokens": 7}))
    return tmp_path


def first_ids(folder: Path, text: str) -> list[int]:
    """As the published code writes white space and shifts ids."""
    text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    for length in range(80, 1, -1):
        text = text.replace(" " * length, f"<|blank_{length}|>")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "ice_text.model"))
    return [7 + token_id for token_id in pieces.encode(text)]


def special_id(folder: Path, name: str) -> int:
    return original(folder).vocab_size() + (*MASKS, *SPEAKERS).index(name)


def prefix(folder: Path) -> list[int]:
    return [special_id(folder, "[gMASK]"), special_id(folder, "sop")]


@pytest.mark.parametrize("text", ["the sophomore sop", " a", "", "\n", "<|user|> hi</s>", "[gMASK]sop"], ids=repr)
def test_every_prompt_of_chatglm_begins_alike_and_its_text_is_only_text(folder: Path, text: str) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode_ids(text) == prefix(folder) + original(folder).encode(text)
    assert tokenizer.decode(tokenizer.encode_ids(text)) == text


def test_chatglm3_sets_roles_by_tokens_that_no_user_can_write(folder: Path) -> None:
    tokenizer, pieces = Tokenizer.load(folder), original(folder)
    chat = tokenizer.write_chat(MESSAGES)
    wanted = prefix(folder)
    for message in MESSAGES:
        wanted += [
            special_id(folder, f"<|{message['role']}|>"),
            *pieces.encode("\n"),
            *pieces.encode(message["content"]),
        ]
    assert tokenizer.chat_ids(chat) == [*wanted, special_id(folder, "<|assistant|>")]
    encoding = tokenizer.encode_chat(chat)
    assert encoding.ids == tokenizer.chat_ids(chat)
    assert chat.text == "[gMASK]sop" + "".join(f"<|{m['role']}|>\n{m['content']}" for m in MESSAGES) + "<|assistant|>"
    assert "".join(chat.text[start:end] for start, end in encoding.offsets) == chat.text
    assert tokenizer.turn_end_ids == (special_id(folder, "<|user|>"), special_id(folder, "<|observation|>"))


def test_chatglm2_writes_rounds(folder: Path) -> None:
    tokenizer = Tokenizer.load(about(folder, "chatglm2-6b"))
    question, answer, next_question = (message["content"] for message in MESSAGES)
    text = f"[Round 1]\n\n问：{question}\n\n答：{answer}\n\n[Round 2]\n\n问：{next_question}\n\n答："
    assert tokenizer.chat_ids(tokenizer.write_chat(MESSAGES)) == prefix(folder) + original(folder).encode(text)
    assert tokenizer.vocab_len == original(folder).vocab_size() + len(MASKS)
    assert tokenizer.turn_end_ids == ()


def test_what_a_family_s_chat_does_not_know_is_refused_by_name(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    with pytest.raises(ChatTemplateError, match="tools"):
        tokenizer.write_chat(MESSAGES, extra={"tools": []})
    with pytest.raises(ChatTemplateError, match="not critic"):
        tokenizer.write_chat([{"role": "critic", "content": ""}])
    with pytest.raises(ChatTemplateError, match="take turns"):
        Tokenizer.load(about(folder, "chatglm2-6b")).write_chat(MESSAGES[1:])


def test_a_stored_template_wins_and_its_tokens_are_tokens(folder: Path) -> None:
    template = "[gMASK]sop{% for m in messages %}<|{{ m.role }}|>\n {{ m.content }}{% endfor %}<|assistant|>"
    tokenizer = Tokenizer.load(about(folder, "chatglm3-6b", chat_template=template))
    user = [*original(folder).encode("\n"), *original(folder).encode("the sophomore")]
    roles = special_id(folder, "<|user|>"), special_id(folder, "<|assistant|>")
    chat = tokenizer.write_chat([{"role": "user", "content": "the sophomore"}])
    assert tokenizer.chat_ids(chat) == [*prefix(folder), roles[0], *user, roles[1]]


def test_training_learns_the_answers_of_a_family_s_chat(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    example = chat_example(Chat(MESSAGES[:2]), Reader(tokenizer, (2,), 200))
    pieces = original(folder)
    learned = [i for i, is_label in zip(example.ids, example.is_label, strict=True) if is_label]
    assert learned == [*pieces.encode("\n"), *pieces.encode("the sofa"), 2]


WHITE = ["the  sofa", "  the", "a\n\tt ", " " * 83 + "hi", "", " ", "the <n> sofa", "你好   \n\n"]


@pytest.mark.parametrize("text", WHITE, ids=repr)
def test_the_first_chatglm_has_tokens_for_white_space_and_ends_its_prompts(first: Path, text: str) -> None:
    tokenizer = Tokenizer.load(first)
    end = [tokenizer.token_id("[gMASK]"), tokenizer.token_id("<sop>")]
    assert tokenizer.encode_ids(text) == first_ids(first, text) + end
    assert tokenizer.decode(tokenizer.encode_ids(text)) == text.replace("<n>", "\n")
    assert tokenizer.token_id("<image_6>") == 6


def test_the_first_chatglm_asks_a_lone_question_as_it_is_and_others_in_rounds(first: Path) -> None:
    tokenizer = Tokenizer.load(first)
    end = [tokenizer.token_id("[gMASK]"), tokenizer.token_id("<sop>")]
    question, answer, last = (message["content"] for message in MESSAGES)
    assert tokenizer.chat_ids(tokenizer.write_chat(MESSAGES[:1])) == first_ids(first, question) + end
    text = f"[Round 0]\n问：{question}\n答：{answer}\n[Round 1]\n问：{last}\n答："
    assert tokenizer.chat_ids(tokenizer.write_chat(MESSAGES)) == first_ids(first, text) + end
    with pytest.raises(ChatTemplateError, match="must be the last"):
        tokenizer.write_chat(MESSAGES[:2])


def test_the_first_chatglm_learns_answers_behind_its_prompts(first: Path) -> None:
    tokenizer = Tokenizer.load(first)
    reader = Reader(tokenizer, (tokenizer.eos_id or 0,), 200)
    chat = chat_example(Chat(({"role": "user", "content": "hi there"}, MESSAGES[1])), reader)
    plain = continuation_example(Continuation("hi there", "the sofa"), reader)
    asked = [*first_ids(first, "hi there"), tokenizer.token_id("[gMASK]"), tokenizer.token_id("<sop>")]
    assert chat == plain
    assert list(chat.ids) == [*asked, *first_ids(first, "the sofa"), tokenizer.eos_id]
    assert chat.is_label == (*[False] * len(asked), *[True] * (len(chat.ids) - len(asked)))
    with pytest.raises(RowError, match="end the chat there"):
        chat_example(Chat((*MESSAGES, MESSAGES[1])), reader)
