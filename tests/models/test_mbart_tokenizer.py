"""mBART's sentencepiece.bpe.model alone: transformers' ids, and sentencepiece's own cuts one place later."""

import json
from pathlib import Path

import pytest
import sentencepiece
import transformers

import tiny
from trefoil_models.tokenizer import Tokenizer

KINDS = ("MBartTokenizer", "MBart50Tokenizer")
TEXTS = ["The cat sat on the mat", "a dog <mask> the end", ""]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.json and the vocabulary file; mBART-50's name must be told besides."""
    folder = tmp_path_factory.mktemp("mbart")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny.SENTENCES * 4),
        model_prefix=str(folder / "m"),
        vocab_size=90,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    (folder / "m.model").rename(folder / "sentencepiece.bpe.model")
    (folder / "config.json").write_text(json.dumps({"model_type": "mbart"}))
    if request.param != "MBartTokenizer":
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": request.param}))
    return folder


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_ids_are_transformers(folder: Path, text: str) -> None:
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    assert ours.encode_ids(text) == theirs(text)["input_ids"]
    assert ours.decode(ours.encode_ids(text)) == theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True)


@pytest.mark.parametrize("text", ["Ｆｕｌｌ  width ① cat ", "  two  spaces\tdog"], ids=repr)
def test_normalises_and_cuts_as_sentencepiece_does(folder: Path, text: str) -> None:
    """transformers forgets mBART's normaliser; who trained the model did not."""
    original = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    cut = [token_id + 1 if token_id else 3 for token_id in original.encode(text)]
    assert Tokenizer.load(folder).encode_ids(text, add_special_tokens=False) == cut


def test_the_folder_says_what_language_it_reads(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**before, "src_lang": "de_DE"}))
    tokenizer = Tokenizer.load(folder)
    path.write_text(json.dumps(before))
    assert tokenizer.token_id("de_DE") in tokenizer.encode_ids("cat")
    assert tokenizer.token_id("de_DE") in tokenizer.special_ids
