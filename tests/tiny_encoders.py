"""Tiny random encoders of every family and head, written by transformers, with a small WordPiece tokenizer.

folder = tiny_encoders.checkpoint(tmp_path, "bert", "ForMaskedLM")
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import tiny

NAMES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "albert": "Albert",
    "distilbert": "DistilBert",
}
OWN: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16, "num_hidden_groups": 2, "num_hidden_layers": 4, "inner_group_num": 2},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "roberta": {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1},
    "xlm-roberta": {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1},
}
"""What a family's config says beyond or instead of SHAPE."""

ANGLES = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
LONGEST = 60
"""Most tokens of a text, as the tokenizer says; every tiny model has the positions for it."""
BPE_VOCAB = 300
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB = 320
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def checkpoint(folder: Path, family: str, head: str, *, seed: int = 0, **overrides: Any) -> Path:
    """Write a random checkpoint with a tokenizer into `folder` and return it; `overrides` are config keys."""
    tiny.logging.disable_progress_bar()
    config = transformers.AutoConfig.for_model(family, **{**SHAPE, **OWN.get(family, {}), **overrides})
    model = getattr(transformers, NAMES[family] + head)(config)
    tiny.draw_weights(model, seed=seed, std=tiny.STD)
    model.save_pretrained(folder)
    write_tokenizer(folder, OF_FAMILIES.get(family, "wordpiece"), has_types=family in ("bert", "albert"))
    return folder


def oracle(folder: Path) -> transformers.PreTrainedModel:
    """transformers' model of a folder, with its head: float32, eval mode, eager attention."""
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    tiny.logging.disable_progress_bar()
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def write_tokenizer(folder: Path, kind: str = "wordpiece", *, has_types: bool = True) -> None:
    """tokenizer.json and tokenizer_config.json of a kind in TOKENIZERS."""
    (folder / "tokenizer.json").write_text(_tokenizer(kind), encoding="utf-8")
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": LONGEST, **ROLES[kind]}
    about["model_input_names"] = ["input_ids", *(["token_type_ids"] if has_types else []), "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")


def words(folder: Path) -> transformers.PreTrainedTokenizerFast:
    """transformers' tokenizer of a folder."""
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


@cache
def _tokenizer(kind: str) -> str:
    return str(TOKENIZERS[kind]().to_str())


def _wordpiece() -> Tokenizer:
    """Lower-cased, `[CLS] A [SEP] B [SEP]` with types 0 and 1."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCAB, special_tokens=list(SPECIALS), show_progress=False)
    tokenizer.train_from_iterator(tiny.SENTENCES * 3, trainer)
    _frame(tokenizer, "[CLS]", "[SEP]")
    return tokenizer


def _byte_pairs() -> Tokenizer:
    """RoBERTa's: `<s> A </s></s> B </s>`, no types."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_VOCAB, special_tokens=list(ANGLES), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(tiny.SENTENCES, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ANGLES.index("</s>")), ("<s>", ANGLES.index("<s>")), trim_offsets=True, add_prefix_space=False
    )
    return tokenizer


def _unigram() -> Tokenizer:
    """ALBERT's kind: SentencePiece Unigram behind a metaspace."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCAB // 2, special_tokens=list(SPECIALS), unk_token="[UNK]", show_progress=False
    )
    tokenizer.train_from_iterator(tiny.SENTENCES * 3, trainer)
    _frame(tokenizer, "[CLS]", "[SEP]")
    return tokenizer


def _frame(tokenizer: Tokenizer, cls: str, sep: str) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )


TOKENIZERS = {"wordpiece": _wordpiece, "byte pairs": _byte_pairs, "unigram": _unigram}
SQUARE = {f"{token.strip('[]').lower()}_token": token for token in SPECIALS}
ROLES = {
    "wordpiece": SQUARE,
    "unigram": SQUARE,
    "byte pairs": {
        **{"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"},
        **{"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"},
    },
}
OF_FAMILIES = {"roberta": "byte pairs", "xlm-roberta": "byte pairs", "albert": "unigram"}
"""Families whose tokenizer is not WordPiece."""
