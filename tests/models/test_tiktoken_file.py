"""Qwen 1's and GLM-4's files of ranks against tiktoken itself, which the published tokenizers call."""

import json
import unicodedata
from base64 import b64encode
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trefoil_models.tiktoken_file import ONE_DIGIT_WORDS, THREE_DIGIT_WORDS
from trefoil_models.tokenizer import Tokenizer, TokenizerError
from trefoil_models.tokenizer_files import GLM_4_SPECIALS, QWEN_SPECIALS

tiktoken = pytest.importorskip("tiktoken")

TEXTS = [
    "",
    "The quick brown fox, 12345 times; don't WE'LL see?!\n\n  indented\r\nline",
    "今天天气很好。你好，世界！😀👩‍👩‍👧",
    "nai\u0308ve cafe\u0301 ｆｕｌｌ",
    "abab ababa aaaaaaa babab",
    "   three spaces\tand a tab ",
    "<|im_start|>user\nhi<|im_end|>\n",
]
text = st.text(st.sampled_from("ab Tehé\u0301 ,.19\n😀你好\u200d"), max_size=24)


def learn_ranks(num_merges: int = 120) -> dict[bytes, int]:
    """Byte pairs joined by how often they come in the texts, and two words that no pairs of tokens lead to."""
    parts = [[bytes([byte]) for byte in line.encode()] for line in TEXTS * 2]
    ranks = {bytes([byte]): 255 - byte for byte in range(256)}
    for _ in range(num_merges):
        pairs = Counter(pair for line in parts for pair in pairwise(line))
        (left, right), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
        ranks.setdefault(left + right, len(ranks))
        parts = [_joined(line, left, right) for line in parts]
    for word in (b" zebra", b"qwertz"):
        ranks[word] = len(ranks)
    return ranks


def _joined(line: list[bytes], left: bytes, right: bytes) -> list[bytes]:
    out: list[bytes] = []
    for part in line:
        if out and out[-1] == left and part == right:
            out[-1] += part
        else:
            out.append(part)
    return out


RANKS = learn_ranks()
QWEN = tiktoken.Encoding(
    "qwen",
    pat_str=ONE_DIGIT_WORDS,
    mergeable_ranks=RANKS,
    special_tokens={token: len(RANKS) + i for i, token in enumerate(QWEN_SPECIALS)},
)


def write_ranks(path: Path, ranks: dict[bytes, int] = RANKS) -> Path:
    path.write_text("".join(f"{b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    return path.parent


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
