"""Tiny random encoder-decoder checkpoints, written by transformers itself, and its own answers about them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, processors
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel, logging

import tiny

FAMILIES = ("t5", "mt5", "bart", "mbart")
START = 3
EOS = tiny.EOS
MASK = "<mask>"

T5: dict[str, Any] = {
    "vocab_size": tiny.VOCAB,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "pad_token_id": START,
}
BART: dict[str, Any] = {
    "vocab_size": tiny.VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": START,
    "forced_eos_token_id": None,
}


def checkpoint(folder: Path, family: str, *, seed: int = 0, std: float = tiny.STD, **overrides: Any) -> Path:
    """A servable folder as `tiny.checkpoint` writes them; decoders begin with token 3."""
    logging.disable_progress_bar()
    base = T5 if family.endswith("t5") else BART
    ids = {"bos_token_id": EOS, "eos_token_id": EOS, "decoder_start_token_id": START}
    config = AutoConfig.for_model(family, **{**base, **ids, **overrides})
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    tiny.draw_weights(model, seed=seed, std=std)
    for name, bias in model.named_buffers():
        if name == "final_logits_bias":
            bias.normal_(0.0, std, generator=torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
    tiny.write_tokenizer(folder)
    return folder


def add_sentinels(folder: Path, count: int = 8) -> Path:
    """Give a folder's tokenizer sentinels, and an end token behind each text, as T5's has."""
    path = str(folder / "tokenizer.json")
    backend = Tokenizer.from_file(path)
    backend.add_special_tokens([f"<extra_id_{number}>" for number in reversed(range(count))])
    end = tiny.SPECIALS[EOS]
    backend.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, EOS)])
    backend.save(path)
    return folder


def add_mask(folder: Path) -> Path:
    """Give a folder's tokenizer a mask token, and tokens before and behind each text, as BART's has."""
    path = str(folder / "tokenizer.json")
    backend = Tokenizer.from_file(path)
    backend.add_special_tokens([MASK])
    start, end = tiny.SPECIALS[1], tiny.SPECIALS[EOS]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, 1), (end, EOS)]
    )
    backend.save(path)
    return tiny.edit_config(folder, lambda about: about.update(mask_token=MASK), "tokenizer_config.json")


def oracle(folder: Path) -> PreTrainedModel:
    """transformers' model of a folder: float32, eval mode, eager attention."""
    logging.disable_progress_bar()
    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def oracle_answers(
    model: PreTrainedModel, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """The encoder's states [T, M] and the logits [T, V] of all pairs, one pair at a time."""
    states, logits = [], []
    for source, target in zip(sources, targets, strict=True):
        with torch.no_grad():
            answer = model(
                input_ids=torch.tensor([list(source)]), decoder_input_ids=torch.tensor([list(target)]), use_cache=False
            )
        states.append(answer.encoder_last_hidden_state[0])
        logits.append(answer.logits[0])
    return torch.cat(states), torch.cat(logits)
