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

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB = 240
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
    write_tokenizer(folder)
    return folder


def oracle(folder: Path) -> transformers.PreTrainedModel:
    """transformers' model of a folder, with its head: float32, eval mode, eager attention."""
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    tiny.logging.disable_progress_bar()
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json: lower-cased WordPiece, `[CLS] A [SEP] B [SEP]` with types 0 and 1."""
    (folder / "tokenizer.json").write_text(_tokenizer(), encoding="utf-8")
    about = {
        "tokenizer_class": "BertTokenizer",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
        "model_max_length": 64,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")


@cache
def _tokenizer() -> str:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCAB, special_tokens=list(SPECIALS), show_progress=False)
    tokenizer.train_from_iterator(tiny.SENTENCES * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, SPECIALS.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return str(tokenizer.to_str())
