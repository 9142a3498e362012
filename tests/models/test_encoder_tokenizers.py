"""Encoders' own vocabulary files alone give the ids, types and offsets of transformers' tokenizers."""

import json
from pathlib import Path

import pytest
import sentencepiece
import transformers

import tiny
import tiny_encoders
from trefoil_models.tokenizer import Tokenizer

TEXTS = ["The cat  sat, on``the''mat!", "Héllo ÀÉ 你好，世界 😀", "one two <mask> three [MASK] four", "", "  dog "]
MODELS = {"bert": "vocab.txt", "distilbert": "vocab.txt", "roberta": "merges.txt"}


def train(folder: Path, name: str, **options: object) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny.SENTENCES * 4),
        model_prefix=str(folder / "m"),
        vocab_size=90,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    (folder / "m.model").rename(folder / name)


@pytest.fixture(params=["bert", "bert cased", "roberta", "albert", "xlm-roberta"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with config.json and the family's vocabulary file, nothing else of text."""
    kind, _, cased = request.param.partition(" ")
    if kind == "bert":
        vocab = json.loads(tiny_encoders._tokenizer("wordpiece"))["model"]["vocab"]
        (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.__getitem__)), encoding="utf-8")
    elif kind == "roberta":
        model = json.loads(tiny_encoders._tokenizer("byte pairs"))["model"]
        (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
        merges = "\n".join(" ".join(pair) for pair in model["merges"])
        (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    elif kind == "albert":
        symbols = {"pad_piece": "<pad>", "control_symbols": "[CLS],[SEP]", "user_defined_symbols": "[MASK]"}
        train(tmp_path, "spiece.model", pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, **symbols)
    else:
        train(tmp_path, "sentencepiece.bpe.model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    if cased:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    return tmp_path


@pytest.mark.parametrize("pair", [None, "the second dog"], ids=["single", "pair"])
def test_ids_types_and_offsets_are_transformers(folder: Path, pair: str | None) -> None:
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    for text in TEXTS:
        wanted = theirs(text, pair, return_offsets_mapping=True, return_token_type_ids=True)
        found = ours.encode(text, pair=pair)
        assert found.ids == wanted["input_ids"], text
        assert found.type_ids == wanted["token_type_ids"], text
        assert found.offsets == wanted["offset_mapping"], text


def test_the_mask_is_known(folder: Path) -> None:
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    assert (ours.mask, ours.mask_id) == (theirs.mask_token, theirs.mask_token_id)
    assert (ours.cls_id, ours.pad_id, ours.unk_id) == (theirs.cls_token_id, theirs.pad_token_id, theirs.unk_token_id)
