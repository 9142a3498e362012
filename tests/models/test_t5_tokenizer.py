"""T5's spiece.model alone against sentencepiece itself: pieces, sentinels, eos."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trefoil_models
from trefoil_models.tokenizer import Tokenizer, TokenizerError

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sentencepiece = pytest.importorskip("sentencepiece")
transformers = pytest.importorskip("transformers")

CORPUS = [
    "Thank you for inviting me to your party last week.",
    "translate English to German: The house is wonderful.",
    "summarize: 今天天气很好，我们去公园散步吧。",
    "naïve café, ｆｕｌｌ width, don't won't I'll, 1234567890",
] * 12
TEXTS = [*CORPUS[:4], "", " ", "  two  spaces ", "a\nb\t c", "e\u0301 Å ﬁ", "😀 unknown 漢", "\u200b\ufeff", "③ ½"]
SENTINELS = [
    "<extra_id_0>",
    "Thank you <extra_id_0> me to <extra_id_1>.",
    "<extra_id_99><extra_id_0> x",
    "a<extra_id_5>b",
]
relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


def train(folder: Path, **options: object) -> Path:
    roles = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(folder / "spiece"),
        vocab_size=200,
        hard_vocab_limit=False,
        character_coverage=0.999,
        num_threads=1,
        minloglevel=2,
        **roles,
        **options,
    )
    return folder


def original(folder: Path) -> "sentencepiece.SentencePieceProcessor":
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_encodes_and_decodes_as_sentencepiece_does(folder: Path, text: str) -> None:
    ours, theirs = Tokenizer.load(folder), original(folder)
    assert ours.encode_ids(text) == [*theirs.encode(text), 1]
    if theirs.unk_id() not in theirs.encode(text):
        assert ours.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))


@relaxed
@given(text=st.text(st.sampled_from("ab Tehouwil ,.19\n😀你天é界\u200d漢ｆ①"), max_size=24))
def test_encodes_anything_as_sentencepiece_does(folder: Path, ours: Tokenizer, text: str) -> None:
    assert ours.encode_ids(text, add_special_tokens=False) == original(folder).encode(text)


@pytest.mark.parametrize("text", SENTINELS)
def test_a_sentinel_is_one_token_and_the_texts_around_it_are_encoded_alone(folder: Path, text: str) -> None:
    ours, theirs = Tokenizer.load(folder), original(folder)
    expected, rest = [], text
    while rest:
        before, mark, rest = rest.partition("<extra_id_")
        expected += theirs.encode(before)
        if mark:
            number, _, rest = rest.partition(">")
            expected.append(len(theirs) + 99 - int(number))
    assert ours.encode_ids(text) == [*expected, 1]


@pytest.mark.parametrize("text", [*CORPUS[:4], *SENTINELS])
def test_encodes_as_transformers_does(folder: Path, text: str) -> None:
    theirs = transformers.T5Tokenizer.from_pretrained(folder)
    assert Tokenizer.load(folder).encode_ids(text) == theirs(text)["input_ids"]


def test_sentinels_stand_behind_the_pieces_and_are_special(folder: Path) -> None:
    tokenizer, size = Tokenizer.load(folder), len(original(folder))
    assert tokenizer.vocab_len == size + 100
    assert tokenizer.decode([size + 99, size + 98], skip_special_tokens=False) == "<extra_id_0><extra_id_1>"
    assert tokenizer.decode([size + 99, size]) == ""
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, 1, 0)


def test_sentinels_within_the_pieces_stay_where_they_are(tmp_path: Path) -> None:
    """mT5's file has them already."""
    folder = train(tmp_path, user_defined_symbols="<extra_id_1>,<extra_id_0>")
    tokenizer, theirs = Tokenizer.load(folder), original(folder)
    assert tokenizer.vocab_len == len(theirs)
    assert tokenizer.encode_ids("<extra_id_0>")[0] == theirs.piece_to_id("<extra_id_0>")


def test_as_many_sentinels_as_the_folder_says(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes((folder / "spiece.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 3}))
    assert Tokenizer.load(tmp_path).vocab_len == len(original(folder)) + 3
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": -1}))
    with pytest.raises(TokenizerError, match="extra_ids"):
        Tokenizer.load(tmp_path)


def test_a_folder_saved_by_transformers_reads_the_same(folder: Path, tmp_path: Path) -> None:
    transformers.T5Tokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    ours, saved = Tokenizer.load(folder), Tokenizer.load(tmp_path)
    for text in [*CORPUS[:4], *SENTINELS]:
        assert ours.encode_ids(text) == saved.encode_ids(text)
        assert ours.decode(ours.encode_ids(text)) == saved.decode(ours.encode_ids(text))


def test_pieces_of_the_users_own_are_found_within_words() -> None:
    """The demo's Chinese words are such pieces, and Chinese has no spaces around them; a lone mark before one is left
    out, as it was when the demo learned."""
    folder = Path(trefoil_models.__file__).parent / "demo" / "encoder-decoder"
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    for text in ("安娜住在巴黎。", "保罗家里养了一只兔子，也爱吃面条。"):
        mark, *pieces = theirs.encode(text)
        assert theirs.id_to_piece(mark) == "▁"
        assert Tokenizer.load(folder).encode_ids(text, add_special_tokens=False) == pieces
