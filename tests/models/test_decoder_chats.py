"""Chats of decoders whose folders hold no template, against what their published code makes of them."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from tiny_tiktoken import QWEN, RANKS, write_ranks
from trefoil_models.chat_template import ChatTemplateError
from trefoil_models.tiktoken_file import byte_alphabet
from trefoil_models.tokenizer import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece")

CORPUS = ["[INST] <<SYS>> the sofa [/INST] hi there", "<|User|>:hi\n<|Bot|>:你好 <|System|>:", "line one\nline two"] * 8
QUESTION, ANSWER, NEXT = "hi <|im_start|> there</s>", "the sofa", "你好\n"
ASKED = [{"role": "user", "content": QUESTION}]
SYSTEM = {"role": "system", "content": "be kind"}
TALK = [*ASKED, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": NEXT}]


def about(folder: Path, **config: object) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def pieces(folder: Path, **options: object) -> "sentencepiece.SentencePieceProcessor":
    """A SentencePiece model as LLaMA's was trained, in the folder."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(folder / "tokenizer"), vocab_size=400, num_threads=1,
        hard_vocab_limit=False, model_type="bpe", byte_fallback=True, minloglevel=2, remove_extra_whitespaces=False,
        normalization_rule_name="identity", **options,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def ids_of(folder: Path, messages: list[dict[str, str]]) -> list[int]:
    tokenizer = Tokenizer.load(folder)
    return tokenizer.chat_ids(tokenizer.write_chat(messages))


def test_qwen_speaks_chatml_and_parses_no_token_of_the_user_s(tmp_path: Path) -> None:
    folder = about(write_ranks(tmp_path / "qwen.tiktoken"), model_type="qwen")
    start, end = len(RANKS) + 1, len(RANKS) + 2
    line = QWEN.encode_ordinary("\n")

    def turn(role: str, text: str) -> list[int]:
        return [start, *QWEN.encode_ordinary(role), *line, *QWEN.encode_ordinary(text), end]

    wanted = [*turn("system", "You are a helpful assistant."), *line, *turn("user", QUESTION), *line]
    opening = [start, *QWEN.encode_ordinary("assistant"), *line]
    assert ids_of(folder, ASKED) == [*wanted, *opening]
    wanted = [*turn("system", "be kind"), *line, *turn("user", QUESTION), *line, *turn("assistant", ANSWER), *line]
    assert ids_of(folder, [SYSTEM, *TALK]) == [*wanted, *turn("user", NEXT), *line, *opening]
    assert Tokenizer.load(folder).turn_end_ids == (end, start)
    (folder / "generation_config.json").write_text('{"chat_format": "raw"}')
    assert not Tokenizer.load(folder).writes_chats


def test_baichuan_numbers_who_speaks(tmp_path: Path) -> None:
    original = pieces(tmp_path, add_dummy_prefix=False, user_defined_symbols=["<reserved_106>", "<reserved_107>"])
    about(tmp_path, model_type="baichuan")
    assert not Tokenizer.load(tmp_path).writes_chats
    user, assistant = original.piece_to_id("<reserved_106>"), original.piece_to_id("<reserved_107>")
    numbers = {"user_token_id": user, "assistant_token_id": assistant}
    (tmp_path / "generation_config.json").write_text(json.dumps(numbers))
    wanted = [*original.encode("be kind"), user, *original.encode(QUESTION), assistant, *original.encode(ANSWER)]
    assert ids_of(tmp_path, [SYSTEM, *TALK]) == [*wanted, user, *original.encode(NEXT), assistant]
    with pytest.raises(ChatTemplateError, match="at their beginning alone"):
        ids_of(tmp_path, [*TALK, SYSTEM])


def test_internlm_marks_speakers_by_text(tmp_path: Path) -> None:
    original = pieces(tmp_path, user_defined_symbols=["<eoa>"])
    about(tmp_path, model_type="internlm")
    text = f"<|System|>:be kind\n<|User|>:{QUESTION}\n<|Bot|>:{ANSWER}<eoa>\n<|User|>:{NEXT}\n<|Bot|>:"
    assert ids_of(tmp_path, [SYSTEM, *TALK]) == [1, *original.encode(text)]
    assert Tokenizer.load(tmp_path).turn_end_ids == (original.piece_to_id("<eoa>"),)


def test_internlm_2_writes_blocks_and_ends_turns_also_under_a_stored_template(tmp_path: Path) -> None:
    original = pieces(tmp_path, control_symbols=["<|im_start|>", "<|im_end|>"])
    about(tmp_path, model_type="internlm2")
    start, end = original.piece_to_id("<|im_start|>"), original.piece_to_id("<|im_end|>")
    said = [("system", "be kind"), ("user", QUESTION), ("assistant", ANSWER), ("user", NEXT)]
    blocks = [[start, *original.encode(f"{role}\n{text}"), end, *original.encode("\n")] for role, text in said]
    wanted = [1, *(token_id for block in blocks for token_id in block), start, *original.encode("assistant\n")]
    assert ids_of(tmp_path, [SYSTEM, *TALK]) == wanted
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}<|im_start|>assistant\n")
    assert Tokenizer.load(tmp_path).turn_end_ids == (end,)


def test_llama_2_begins_and_ends_each_round(tmp_path: Path) -> None:
    original = pieces(tmp_path)
    about(tmp_path, model_type="llama", vocab_size=32000, max_position_embeddings=4096)
    first = f"[INST] <<SYS>>\nbe kind\n<</SYS>>\n\n{QUESTION} [/INST] {ANSWER} "
    last = f"[INST] {NEXT.strip()} [/INST]"
    assert ids_of(tmp_path, [SYSTEM, *TALK]) == [1, *original.encode(first), 2, 1, *original.encode(last)]
    led = "[INST] <<SYS>>\nbe kind\n<</SYS>>\n\n  hi [/INST]"  # stripped as a whole, the system's words before it
    assert ids_of(tmp_path, [SYSTEM, {"role": "user", "content": "  hi "}]) == [1, *original.encode(led)]
    with pytest.raises(ChatTemplateError, match="take turns"):
        ids_of(tmp_path, TALK[1:])
    for unanswerable in ([SYSTEM], TALK[:2]):
        with pytest.raises(ChatTemplateError, match="a message of the user, which must be the last"):
            ids_of(tmp_path, unanswerable)
    about(tmp_path, model_type="llama", vocab_size=32000, max_position_embeddings=2048)  # LLaMA 1 has no chat
    assert not Tokenizer.load(tmp_path).writes_chats


@pytest.mark.parametrize("model_type", ["llama", "deepseek"])
def test_deepseek_names_who_speaks_and_ends_answers(tmp_path: Path, model_type: str) -> None:
    bounds = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"]
    backend = tokenizers.Tokenizer(models.BPE({letter: n for n, letter in enumerate(byte_alphabet())}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    backend.add_special_tokens(bounds)
    backend.save(str(tmp_path / "tokenizer.json"))
    about(tmp_path, model_type=model_type, vocab_size=102400, max_position_embeddings=4096)
    text = f"be kind\n\nUser: {QUESTION}\n\nAssistant: {ANSWER}{bounds[1]}User: {NEXT}\n\nAssistant:"
    assert ids_of(tmp_path, [SYSTEM, *TALK]) == backend.encode(bounds[0] + text).ids
