"""GPT-1's vocabulary of pieces that mark where words end, against transformers."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers
from transformers import OpenAIGPTTokenizer

from trefoil_models.tokenizer import Tokenizer

CORPUS = ["The quick brown fox jumps over the lazy dog, again and again.", "naïve café; don't won't I'll"] * 8
TEXTS = [
    "The Quick brown foxes!",
    "Naïve CAFÉ, jumping",
    "",
    "  spaced\n out ",
    "quick 你好 ☃ dog",
    "dog<unk>",
    "a.b-c d'e",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "OpenAIGPTTokenizer"}))
    return tmp_path


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_read_as_transformers_reads_them(folder: Path, text: str) -> None:
    ours, theirs = Tokenizer.load(folder), OpenAIGPTTokenizer.from_pretrained(folder)
    ids = theirs(text)["input_ids"]
    assert ours.encode_ids(text) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    stream = ours.stream([], skip_special_tokens=True)
    assert "".join([*map(stream.push, ids), stream.flush()]) == ours.decode(ids)


def test_no_token_ends_a_text_and_pieces_say_what_they_stand_for(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (None, None, tokenizer.token_id("<unk>"))
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode_ids("The lazy dog"))) == b"the lazy dog "
