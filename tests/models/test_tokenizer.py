"""The tokenizer against its originals: transformers for the library's files, sentencepiece for tokenizer.model."""

import json
import os
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from trefoil_models.tokenizer import Roles, Tokenizer, TokenizerError

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sentencepiece = pytest.importorskip("sentencepiece")
transformers = pytest.importorskip("transformers")

CORPUS = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "Hello world! Hello  there,   world of 1234567890 tokens.",
    "今天天气很好，我们去公园散步吧。你好，世界！",
    "Smiles 😀 and 👩‍👩‍👧 families, flags 🇨🇳, naïve café.",
    "line one\nline two\n\n\tindented line three",
    "abab baba aabb abba ababab bababa don't won't I'll",
] * 8
TEXTS = [
    *CORPUS[:6],
    "",
    " ",
    "   ",
    " leading",
    "  two leading",
    "trailing ",
    "a  b   c",
    "\n",
    "a\r\nb",
    "ｆｕｌｌ e\u0301",
    "𝒳 ꙮ Ѧ",
]
SPECIALS = ["<s>a</s>", "<s>[X] b", "hi</s><s>hi", "a<s>", "<unk> x", "<s> spaced </s> out"]
texts = st.text(st.sampled_from("ab Teho ,.19\n😀你好é界\u200d漢"), max_size=24)
relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, name: str, values: object) -> None:
    (folder / name).write_text(json.dumps(values, ensure_ascii=False), "utf-8")


def byte_level(*, special: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")) -> tokenizers.Tokenizer:
    """GPT-2's kind, trained on the corpus."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder for each kind of tokenizer."""
    kinds = {"json": save_json, "pairs": save_pairs, "qwen2": save_qwen2, "bpe": save_bpe, "unigram": save_unigram}
    return {kind: save(tmp_path_factory.mktemp(kind)) for kind, save in kinds.items()}


def save_json(folder: Path) -> Path:
    byte_level().save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    write(folder, "tokenizer_config.json", config)
    return folder


def save_pairs(folder: Path, **config: object) -> Path:
    byte_level().model.save(str(folder))
    write(folder, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", **config})
    return folder


def save_qwen2(folder: Path) -> Path:
    size = byte_level().get_vocab_size()
    end = {"__type": "AddedToken", "content": "<|im_end|>", "normalized": False, "special": True}
    added = {
        str(size): {"content": "<think>", "special": False},
        str(size + 1): {"content": "<|pad|>", "special": True},
    }
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": end, "pad_token": "<|pad|>"}
    return save_pairs(folder, **config, bos_token=None, unk_token=None, added_tokens_decoder=added)


def save_bpe(folder: Path, **config: object) -> Path:
    return train(folder, config, model_type="bpe", byte_fallback=True, **LLAMA)


def save_unigram(folder: Path, **config: object) -> Path:
    return train(folder, config, model_type="unigram")


# How LLaMA's model was trained.
LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True}


def train(folder: Path, config: dict[str, object], **options: object) -> Path:
    options = {"vocab_size": 420, "hard_vocab_limit": False, "character_coverage": 0.98, "num_threads": 1, **options}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(folder / "tokenizer"), minloglevel=2, **options
    )
    if config:
        write(folder, "tokenizer_config.json", config)
    return folder


def original(folder: Path) -> "sentencepiece.SentencePieceProcessor":
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


load, original_of = cache(Tokenizer.load), cache(original)
"""Of the shelf's folders, which stay as they are."""


def peer(folder: Path) -> "transformers.PreTrainedTokenizerBase":
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


KINDS = ["json", "pairs", "qwen2", "bpe", "unigram"]
LIBRARY = ["json", "pairs", "qwen2"]


@pytest.mark.parametrize("kind", LIBRARY)
def test_encodes_and_decodes_as_transformers_does(shelf: dict[str, Path], kind: str) -> None:
    ours, theirs = load(shelf[kind]), peer(shelf[kind])
    for text in [*TEXTS, "<|im_start|>user\nhi<|im_end|>", "a<think> b"]:
        expected = theirs(text, return_offsets_mapping=True)
        found = ours.encode(text)
        assert found.ids == expected["input_ids"] == ours.encode_ids(text)
        assert found.offsets == expected["offset_mapping"]
        assert found.tokens == theirs.convert_ids_to_tokens(found.ids)
        assert ours.decode(found.ids, skip_special_tokens=False) == theirs.decode(found.ids)
        assert ours.decode(found.ids) == theirs.decode(found.ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", LIBRARY)
def test_roles_are_those_of_transformers(shelf: dict[str, Path], kind: str) -> None:
    ours, theirs = load(shelf[kind]), peer(shelf[kind])
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert ours.special_ids >= set(theirs.all_special_ids)
    assert ours.vocab_len == len(theirs)
    assert not ours.undecodable


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_tokenizer_model_encodes_as_sentencepiece_does(shelf: dict[str, Path], kind: str, text: str) -> None:
    ours, theirs = load(shelf[kind]), original_of(shelf[kind])
    assert ours.encode_ids(text, add_special_tokens=False) == theirs.encode(text)
    if theirs.unk_id() not in theirs.encode(text):  # sentencepiece writes unknowns as " ⁇ ", transformers not at all
        assert ours.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))


@relaxed
@given(text=texts)
def test_tokenizer_model_encodes_anything_as_sentencepiece_does(shelf: dict[str, Path], text: str) -> None:
    ours, theirs = load(shelf["bpe"]), original_of(shelf["bpe"])
    assert ours.encode_ids(text, add_special_tokens=False) == theirs.encode(text)


@relaxed
@given(data=st.data())
def test_tokenizer_model_decodes_any_ids_as_sentencepiece_does(shelf: dict[str, Path], data: st.DataObject) -> None:
    ours, theirs = load(shelf["bpe"]), original_of(shelf["bpe"])
    space = theirs.piece_to_id("<0x20>")  # which the library's Strip takes for the dummy prefix at a text's start
    ids = data.draw(st.lists(st.integers(3, ours.vocab_len - 1).filter(lambda i: i != space), max_size=12))
    assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@relaxed
@given(text=texts)
def test_text_survives_the_round_trip(shelf: dict[str, Path], kind: str, text: str) -> None:
    tokenizer = load(shelf[kind])
    if kind == "unigram":  # normalises, and has no bytes for what it does not know
        assert tokenizer.decode(tokenizer.encode_ids("hello the")) == "hello the"
    else:
        assert tokenizer.decode(tokenizer.encode_ids(text)) == text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [True, False])
@relaxed
@given(data=st.data())
def test_stream_says_what_decode_says(shelf: dict[str, Path], kind: str, skip: bool, data: st.DataObject) -> None:
    tokenizer = load(shelf[kind])
    some_ids = st.lists(st.integers(0, tokenizer.vocab_len + 1), max_size=60)
    prompt, ids = data.draw(some_ids), data.draw(some_ids | texts.map(tokenizer.encode_ids))
    stream = tokenizer.stream(prompt, skip_special_tokens=skip)
    pieces = [stream.push(token_id) for token_id in ids]
    before = tokenizer.decode(prompt, skip_special_tokens=skip)
    whole = tokenizer.decode([*prompt, *ids], skip_special_tokens=skip)
    # A half character at the prompt's end may become whole.
    kept = len(os.path.commonprefix([before, whole]))  # noqa: RUF071  # texts, not paths
    assert "".join(pieces) + stream.flush() == whole[kept:]


DECODERS = {
    "wordpiece": decoders.WordPiece(),
    "end of word": decoders.BPEDecoder(),
    "metaspace": decoders.Metaspace(),
    "none": None,
}


@pytest.mark.parametrize("name", DECODERS)
@relaxed
@given(data=st.data())
def test_stream_follows_every_decoder(name: str, data: st.DataObject) -> None:
    words = ["a", "##b", "c</w>", "▁d", "▁", "'s", "don", "n't", ".", "�", "é"]
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    if DECODERS[name]:
        backend.decoder = DECODERS[name]
    tokenizer = Tokenizer(backend, Roles())
    some_ids = st.lists(st.integers(0, len(words) - 1), max_size=50)
    prompt, ids = data.draw(some_ids), data.draw(some_ids)
    stream = tokenizer.stream(prompt, skip_special_tokens=True)
    said = "".join(map(stream.push, ids)) + stream.flush()
    assert tokenizer.decode(prompt) + said == tokenizer.decode([*prompt, *ids])


@pytest.mark.parametrize("kind", ["json", "bpe"])
def test_stream_never_gives_half_a_character(shelf: dict[str, Path], kind: str) -> None:
    tokenizer = load(shelf[kind])
    stream = tokenizer.stream([], skip_special_tokens=True)
    pieces = [stream.push(token_id) for token_id in tokenizer.encode_ids("x🦜y鸚鵡z")]
    assert "".join(pieces) == "x🦜y鸚鵡z"
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["json", "bpe"])
def test_stream_gives_a_broken_end_as_replacement_characters(shelf: dict[str, Path], kind: str) -> None:
    tokenizer = load(shelf[kind])
    stream = tokenizer.stream([], skip_special_tokens=True)
    ids = tokenizer.encode_ids("a 🦜")[:-1]
    assert "".join(map(stream.push, ids)) == "a "
    assert set(stream.flush()) == {"\ufffd"}
    assert stream.flush() == ""


def test_stream_keeps_the_space_after_a_prompt(shelf: dict[str, Path]) -> None:
    tokenizer = load(shelf["bpe"])
    prompt, ids = tokenizer.encode_ids("Hello"), tokenizer.encode_ids("world", add_special_tokens=False)
    after, alone = (tokenizer.stream(before, skip_special_tokens=True) for before in (prompt, []))
    assert "".join(map(after.push, ids)) == " world"
    assert "".join(map(alone.push, ids)) == "world"


def test_a_llama_folder_saved_by_transformers_reads_the_same(shelf: dict[str, Path], tmp_path: Path) -> None:
    transformers.LlamaTokenizer.from_pretrained(shelf["bpe"]).save_pretrained(tmp_path)
    ours, theirs = Tokenizer.load(tmp_path), peer(tmp_path)
    for text in [*TEXTS, *SPECIALS]:
        found = theirs(text, return_offsets_mapping=True)
        assert ours.encode_ids(text) == found["input_ids"]
        assert ours.encode(text).offsets == found["offset_mapping"]
        assert ours.decode(found["input_ids"]) == theirs.decode(found["input_ids"], skip_special_tokens=True)


@pytest.mark.parametrize("text", [text for text in TEXTS if not text.startswith(" ")], ids=repr)
def test_tokenizer_model_reads_as_in_transformers_save_leading_spaces(shelf: dict[str, Path], text: str) -> None:
    theirs = transformers.LlamaTokenizer.from_pretrained(shelf["bpe"], add_bos_token=True)
    assert load(shelf["bpe"]).encode_ids(text) == theirs(text)["input_ids"]


@pytest.mark.parametrize("text", SPECIALS)
def test_control_tokens_in_text_are_found_as_legacy_llama_does(tmp_path: Path, text: str) -> None:
    folder = save_bpe(tmp_path, add_bos_token=False)
    theirs, controls = original(folder), {"<s>": 1, "</s>": 2, "<unk>": 0}
    expected: list[int] = []
    for part in split_at(text, list(controls)):
        expected += [controls[part]] if part in controls else theirs.encode(part)
    assert Tokenizer.load(folder).encode_ids(text) == expected


def split_at(text: str, tokens: list[str]) -> list[str]:
    for token in tokens:
        text = text.replace(token, f"\0{token}\0")
    return [part for part in text.split("\0") if part]


def test_prefix_stands_only_before_the_text_where_not_legacy(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(save_bpe(tmp_path, legacy=False, add_bos_token=False))
    assert tokenizer.encode("a</s>a").tokens == ["▁a", "</s>", "a"]
    assert tokenizer.encode("<s>a").tokens == ["<s>", "a"]


def test_user_defined_pieces_are_text_to_sentencepiece(tmp_path: Path) -> None:
    folder = train(tmp_path, {}, model_type="bpe", byte_fallback=True, user_defined_symbols="[SEP],<n>", **LLAMA)
    ours, theirs = Tokenizer.load(folder), original(folder)
    for text in ["a[SEP]b", "[SEP]b<n><n> c", "a [SEP] "]:
        assert ours.encode_ids(text, add_special_tokens=False) == theirs.encode(text)
        assert ours.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_spaces_are_trimmed_at_the_ends_of_a_text_not_of_user_defined_pieces(kind: str, tmp_path: Path) -> None:
    trims = {**LLAMA, "remove_extra_whitespaces": True}
    folder = train(tmp_path, {}, model_type=kind, user_defined_symbols="[SEP],<n>", **trims)
    ours, theirs = Tokenizer.load(folder), original(folder)
    for text in ["a[SEP]b", "[SEP]b<n><n> c", "a  [SEP] ", " [SEP]", "a [SEP]  <n> b "]:
        assert ours.encode_ids(text, add_special_tokens=False) == theirs.encode(text)


def test_user_defined_runs_of_spaces_stand_for_spaces(tmp_path: Path) -> None:
    folder = train(tmp_path, {}, model_type="bpe", byte_fallback=True, user_defined_symbols="▁▁", **LLAMA)
    ours, theirs = Tokenizer.load(folder), original(folder)
    for text in ["a  b", " a", "a   b  "]:
        ids = theirs.encode(text)
        assert theirs.piece_to_id("▁▁") in ids
        assert ours.encode_ids(text, add_special_tokens=False) == ids
        assert b"".join(map(ours.token_bytes, ids)).decode() == " " + theirs.decode(ids)


@pytest.mark.parametrize("text", [text for text in [*TEXTS, *SPECIALS] if text])
def test_offsets_point_into_the_text_itself(shelf: dict[str, Path], text: str) -> None:
    found = load(shelf["bpe"]).encode(text)
    assert found.offsets[0] == (0, 0)
    assert found.type_ids == [0] * len(found.ids)
    for token, (start, end) in zip(found.tokens, found.offsets, strict=True):
        word = token.replace("▁", " ")
        assert token.startswith("<") or text[start:end] in (word, word.removeprefix(" "))


@pytest.mark.parametrize(("bos", "eos"), [(True, False), (False, False), (False, True), (True, True), (None, None)])
def test_tokenizer_model_puts_bos_unless_told_not_to(tmp_path: Path, bos: bool | None, eos: bool | None) -> None:
    tokenizer = Tokenizer.load(save_bpe(tmp_path, add_bos_token=bos, add_eos_token=eos))
    ids = tokenizer.encode_ids("a")
    assert (ids[0] == tokenizer.bos_id == 1) == (bos is not False)
    assert (ids[-1] == tokenizer.eos_id == 2) == (eos is True)


@pytest.mark.parametrize(
    "flags", [{"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True}, {}], ids=str
)
def test_byte_pairs_put_bos_and_eos_as_transformers_does(tmp_path: Path, flags: dict[str, bool]) -> None:
    folder = save_pairs(tmp_path, **flags, bos_token="<|im_start|>")
    assert Tokenizer.load(folder).encode_ids("a b") == peer(folder)("a b")["input_ids"]


@pytest.mark.parametrize("flag", [True, False])
def test_tokenizer_json_rules_over_the_flags_as_in_transformers(tmp_path: Path, flag: bool) -> None:
    backend = byte_level()
    backend.post_processor = processors.TemplateProcessing("<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    backend.save(str(tmp_path / "tokenizer.json"))
    names = {"bos_token": "<|im_start|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    write(tmp_path, "tokenizer_config.json", {**names, "add_bos_token": flag})
    assert Tokenizer.load(tmp_path).encode_ids("a b") == peer(tmp_path)("a b")["input_ids"]


def test_tokenizer_json_that_adds_nothing_heeds_add_bos_token(tmp_path: Path) -> None:
    folder = save_json(tmp_path)
    write(folder, "tokenizer_config.json", {"bos_token": "<|im_start|>", "add_bos_token": True})
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode_ids("a") == [tokenizer.bos_id, *tokenizer.encode_ids("a", add_special_tokens=False)]


def test_older_files_name_the_special_tokens(tmp_path: Path) -> None:
    byte_level().model.save(str(tmp_path))
    size = byte_level().get_vocab_size()
    write(tmp_path, "added_tokens.json", {"[PAD]": size})
    write(tmp_path, "special_tokens_map.json", {"pad_token": "[PAD]", "eos_token": {"content": "<|im_end|>"}})
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.vocab_len) == (size, 2, size + 1)
    assert tokenizer.special_ids == {0, 2, size}


def test_padding_stored_in_tokenizer_json_is_not_applied(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_padding(length=64)
    backend.enable_truncation(max_length=2)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert (
        Tokenizer.load(tmp_path).decode(Tokenizer.load(tmp_path).encode_ids("quite some words")) == "quite some words"
    )


def test_roberta_files_frame_each_text(tmp_path: Path) -> None:
    byte_level(special=("<s>", "<pad>", "</s>", "<unk>", "<mask>")).model.save(str(tmp_path))
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer", **names})
    ours, theirs = Tokenizer.load(tmp_path), peer(tmp_path)
    found = theirs("the <mask> dog", return_offsets_mapping=True)
    assert ours.encode_ids("the <mask> dog") == found["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_token_bytes_join_to_the_text(shelf: dict[str, Path], kind: str) -> None:
    tokenizer = load(shelf[kind])
    text = "The quick brown 12 dog" if kind == "unigram" else "Hello  world 你好 🦜 12\n"
    joined = b"".join(map(tokenizer.token_bytes, tokenizer.encode_ids(text, add_special_tokens=False)))
    assert joined.decode().removeprefix(" ") == text


@pytest.mark.parametrize("kind", KINDS)
def test_token_text_never_raises(shelf: dict[str, Path], kind: str) -> None:
    tokenizer = load(shelf[kind])
    said = [tokenizer.token_text(token_id) for token_id in range(tokenizer.vocab_len)]
    assert all(said)
    assert [tokenizer.token_text(token_id) for token_id in (-1, tokenizer.vocab_len, 2**40)] == ["", "", ""]
    assert tokenizer.decode([-1, 2**40]) == ""


def test_ids_without_a_token_are_undecodable(tmp_path: Path) -> None:
    folder = save_json(tmp_path)
    stored = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    stored["model"]["vocab"]["far"] = 5000
    write(folder, "tokenizer.json", stored)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.vocab_len == 5001
    assert {4999, 4000} < tokenizer.undecodable
    assert 5000 not in tokenizer.undecodable


def test_reserved_pieces_go_by_the_names_of_the_config(tmp_path: Path) -> None:
    added = {"419": {"content": "<|im_start|>", "special": True}, "420": {"content": "<|new|>", "special": True}}
    size = original(save_bpe(tmp_path)).get_piece_size()
    added = {str(size - 1): added["419"], str(size): added["420"]}
    write(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": added, "add_bos_token": False})
    assert Tokenizer.load(tmp_path).encode_ids("<|im_start|><|new|>") == [size - 1, size]


def test_a_byte_run_keeps_its_whole_characters(shelf: dict[str, Path]) -> None:
    tokenizer = load(shelf["bpe"])
    ids = tokenizer.encode_ids("鸚", add_special_tokens=False)
    assert tokenizer.decode([*ids, ids[-3]]) == original_of(shelf["bpe"]).decode([*ids, ids[-3]]) == "鸚\ufffd"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b'{"model": {}}'),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n"),
        ("tokenizer.model", b"\x0a\x7fcut"),
        ("tokenizer.model", b"\x0a"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": "y"}}'),
        ("special_tokens_map.json", b"\xff"),
    ],
    ids=str,
)
def test_damaged_files_are_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TokenizerError, match=r"^(tokenizer|special_tokens_map)[a-z_.]*: expected.*$") as caught:
        Tokenizer.load(tmp_path)
    assert str(caught.value).startswith(("tokenizer_config.json", name))
    assert "\n" not in str(caught.value)


@relaxed
@given(data=st.data())
def test_a_damaged_model_is_read_or_refused(shelf: dict[str, Path], tmp_path: Path, data: st.DataObject) -> None:
    whole = (shelf["unigram"] / "tokenizer.model").read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    damage = data.draw(st.binary(max_size=4))
    (tmp_path / "tokenizer.model").write_bytes(whole[:place] + damage + whole[place + len(damage) + 1 :])
    with suppress(TokenizerError):
        Tokenizer.load(tmp_path).encode("a text")


def test_a_folder_without_tokenizer_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.json; or vocab\.json with merges\.txt; or .*tokenizer\.model"
    ):
        Tokenizer.load(tmp_path)


def test_byte_pairs_of_another_kind_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "vocab.json", {"a@@": 0})
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(TokenizerError, match="byte-level"):
        Tokenizer.load(tmp_path)


def test_a_chat_template_file_wins_over_the_config(tmp_path: Path) -> None:
    folder = save_pairs(
        tmp_path, chat_template=[{"name": "tool_use", "template": "no"}, {"name": "default", "template": "c"}]
    )
    assert Tokenizer.load(folder).render_chat([]) == "c"
    (folder / "chat_template.jinja").write_text("file {{ eos_token }}")
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.has_chat_template
    assert tokenizer.render_chat([]) == "file <|endoftext|>"


def test_without_template_a_chat_is_written_plainly(shelf: dict[str, Path], tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    plain = load(shelf["json"])
    assert not plain.has_chat_template
    assert plain.render_chat(chat) == "Be kind.\n\nUser: Hi\n\nAssistant:"
    shutil.copy(shelf["bpe"] / "tokenizer.model", tmp_path)
    assert Tokenizer.load(tmp_path).render_chat(chat) == "<s>Be kind.\n\nUser: Hi\n\nAssistant:"
