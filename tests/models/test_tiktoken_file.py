"""Qwen 1's and GLM-4's files of ranks against tiktoken itself, which the published tokenizers call."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_tiktoken import QWEN, RANKS, TEXTS, tiktoken, write_ranks
from trefoil_models.tiktoken_file import THREE_DIGIT_WORDS
from trefoil_models.tokenizer import Tokenizer, TokenizerError
from trefoil_models.tokenizer_files import GLM_4_SPECIALS

text = st.text(st.sampled_from("ab Tehé\u0301 ,.19\n😀你好\u200d"), max_size=24)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_ranks(tmp_path_factory.mktemp("qwen") / "qwen.tiktoken"))


@settings(max_examples=150, deadline=None)
@given(line=st.sampled_from([*TEXTS, " zebra qwertz zebras"]) | text)
def test_qwen_texts_are_cut_as_tiktoken_cuts_them(qwen: Tokenizer, line: str) -> None:
    ids = QWEN.encode(unicodedata.normalize("NFC", line), allowed_special="all")
    assert qwen.encode_ids(line) == ids
    assert qwen.decode(ids, skip_special_tokens=False) == QWEN.decode(ids)
    stream = qwen.stream([], skip_special_tokens=False)
    assert "".join([*map(stream.push, ids), stream.flush()]) == QWEN.decode(ids)


def test_qwen_specials_follow_the_ranks(qwen: Tokenizer) -> None:
    assert qwen.vocab_len == QWEN.n_vocab
    assert qwen.eos_id == qwen.pad_id == len(RANKS)
    assert qwen.special_ids == frozenset(range(len(RANKS), len(RANKS) + 208))
    assert qwen.bos_id is None
    assert all(qwen.token_bytes(rank) == token for token, rank in RANKS.items())


@pytest.mark.parametrize("lists_specials", [True, False])
def test_glm_4_keeps_its_ranks_in_tokenizer_model(tmp_path: Path, lists_specials: bool) -> None:
    places = {token: len(RANKS) + i for i, token in enumerate(GLM_4_SPECIALS)}
    if lists_specials:
        places = dict(list(places.items())[:10])
        added = {str(place): {"content": token, "special": True} for token, place in places.items()}
        about = {"tokenizer_class": "ChatGLM4Tokenizer", "added_tokens_decoder": added, "eos_token": "<|endoftext|>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    theirs = tiktoken.Encoding("glm", pat_str=THREE_DIGIT_WORDS, mergeable_ranks=RANKS, special_tokens=places)
    ours = Tokenizer.load(write_ranks(tmp_path / "tokenizer.model"))
    for line in [*TEXTS, "[gMASK]<sop><|user|>\n1234567"]:
        start = [places["[gMASK]"], places["<sop>"]]
        assert ours.encode_ids(line) == [*start, *theirs.encode(line, allowed_special="all")]
    assert ours.special_ids == frozenset(places.values())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chatglm"}))
    ours, said = Tokenizer.load(tmp_path), "hi <|user|>"
    plain = [*theirs.encode("\n"), *theirs.encode(said, disallowed_special=())]
    chat = ours.chat_ids(ours.write_chat([{"role": "user", "content": said}]))
    assert chat == [*start, places["<|user|>"], *plain, places["<|assistant|>"]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "a token and a rank on each line"),
        ("version https://git-lfs.github.com/spec/v1\n", "padding"),
        ("YQ== 0\nYg== 2\n", "not the numbers 0 to 1"),
        ("YQ== 0\nYg== 1\n", "the byte 0 is no token"),
        ("Y 0\n", "base64"),
        ("YQ== one\n", "'one'"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "qwen.tiktoken").write_text(content)
    with pytest.raises(TokenizerError, match=r"qwen\.tiktoken: expected a tiktoken file: .*") as caught:
        Tokenizer.load(tmp_path)
    assert reason in str(caught.value)
