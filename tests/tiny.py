"""Tiny random checkpoints of every family, written by transformers itself, and transformers' own answers about them.

    folder = tiny.checkpoint(tmp_path / "m", "llama", num_key_value_heads=1)   # a whole servable folder
    logits_LV = tiny.oracle_logits(tiny.oracle(folder), ids)

A folder holds config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json
(byte-level BPE, a chat template, eos `<|end|>`). Weights are drawn large, so that a mistake moves the logits.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel, logging

import tiny_remote

TRANSFORMERS = ("deepseek_v2", "deepseek_v3", "glm", "glm4", "gpt2", "gpt_neo", "internlm3", "llama", "mistral")
TRANSFORMERS += ("mixtral", "openai-gpt", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
"""Families that transformers has a class for."""
FAMILIES = (*TRANSFORMERS, *tiny_remote.FAMILIES)
PEER = "peer"
VOCAB = 320
TOKENIZER_VOCAB = 300
SPECIALS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
EOS = 0
STD = 0.2

DENSE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
GPT2: dict[str, Any] = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
GPT_NEO: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "max_position_embeddings": 256,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 7,
}
LATENT: dict[str, Any] = {
    **DENSE,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 20,
    "first_k_dense_replace": 1,
}
EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
SETTINGS: dict[str, dict[str, Any]] = {
    "deepseek_v2": {**LATENT, "topk_method": "group_limited_greedy", "n_shared_experts": 2},
    "deepseek_v3": {**LATENT, "n_shared_experts": 1},
    "glm": {**DENSE, "pad_token_id": 0},
    "glm4": {**DENSE, "pad_token_id": 0},
    "gpt2": GPT2,
    "qwen2_moe": {**DENSE, **EXPERTS, "shared_expert_intermediate_size": 28},
    "qwen3_moe": {**DENSE, **EXPERTS, "norm_topk_prob": True},
    "gpt_neo": GPT_NEO,
    "openai-gpt": GPT2,
    "mixtral": {**DENSE, "num_local_experts": 4, "num_experts_per_tok": 2},
}
"""By family; the others are dense."""
SENTENCES = (
    "the cat sat on the mat and the dog sat on the cat",
    "one two three four five six seven eight nine ten",
    "The quick brown fox jumps over the lazy dog.",
    "你好,世界!今天天气很好。",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def checkpoint(
    folder: Path, family: str, *, seed: int = 0, std: float = STD, head: str | None = None, **overrides: Any
) -> Path:
    """Write a random checkpoint with a tokenizer into `folder` and return it; `overrides` are config keys.

    A family that transformers has no class for is written beside its peer, whose keys the overrides are then.

    `head`: the end of another class of transformers than the causal LM, such as ForSequenceClassification.
    """
    logging.disable_progress_bar()
    if family in tiny_remote.FAMILIES:
        return _remote_checkpoint(folder, family, seed=seed, std=std, head=head, **overrides)
    if family in TRANSFORMERS and family not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    settings = {**SETTINGS.get(family, DENSE), "bos_token_id": EOS, "eos_token_id": EOS, **overrides}
    auto = AutoModelForCausalLM if head is None else getattr(transformers, f"AutoModel{head}")
    model = auto.from_config(AutoConfig.for_model(family, **settings), dtype=torch.float32)
    draw_weights(model, seed=seed, std=std)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def _remote_checkpoint(folder: Path, family: str, **settings: Any) -> Path:
    """As the family's own files say it, and in a folder within as its peer's do."""
    remote = tiny_remote.FAMILIES[family]
    peer = checkpoint(folder / PEER, remote.peer, **{**remote.settings, **settings})
    if remote.prepare is not None:
        drawn = remote.prepare(load_file(peer / "model.safetensors"))
        save_file(drawn, peer / "model.safetensors", {"format": "pt"})
    config = json.loads((peer / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(remote.config(config)), encoding="utf-8")
    tensors = published(folder, load_file(peer / "model.safetensors"))
    save_file({name: x.contiguous() for name, x in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    if (peer / "generation_config.json").is_file():
        shutil.copy(peer / "generation_config.json", folder)
    write_tokenizer(folder)
    return folder


def published(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors of a folder, or their gradients, under the names and in the layouts of its family."""
    if not (folder / PEER).is_dir():
        return tiny_remote.each_expert(json.loads((folder / "config.json").read_text()), tensors)
    config, peer = (json.loads((path / "config.json").read_text()) for path in (folder, folder / PEER))
    return tiny_remote.FAMILIES[config["model_type"]].tensors(peer, tiny_remote.each_expert(peer, tensors))


def draw_weights(model: torch.nn.Module, *, seed: int, std: float) -> None:
    """Normal matrices and biases, norms around one; what steers a router's choice is no parameter, and drawn too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            centre = 1.0 if weight.dim() == 1 and name.endswith("weight") else 0.0
            weight.normal_(centre, std, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0.0, std, generator=generator)


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json: every byte, a few merges, the special tokens with the ids 0 to 3."""
    (folder / "tokenizer.json").write_text(_tokenizer(), encoding="utf-8")
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIALS[EOS],
        "bos_token": None,
        "pad_token": None,
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")


@cache
def _tokenizer() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_VOCAB, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return str(tokenizer.to_str())


def oracle(folder: Path) -> PreTrainedModel:
    """transformers' model of a folder: float32, eval mode, eager attention."""
    logging.disable_progress_bar()
    folder = folder / PEER if (folder / PEER).is_dir() else folder
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def oracle_logits(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """[L, V] of one sequence in one full forward pass."""
    with torch.no_grad():
        return model(torch.tensor([list(ids)]), use_cache=False).logits[0].float()


def draw_ids(*lens: int, seed: int = 0, vocab: int = VOCAB) -> list[list[int]]:
    """One random sequence of token ids per length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab, (n,), generator=generator).tolist() for n in lens]


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "config.json") -> Path:
    """Let `change` edit the content of a folder's JSON file in place."""
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    change(content)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def to_hub_dialect(folder: Path) -> Path:
    """Rewrite config.json as folders of 2020 to 2025 say it: torch_dtype, rope_theta, rope_scaling with `type`."""
    return edit_config(folder, _hub_dialect)


def _hub_dialect(config: dict[str, Any]) -> None:
    config["torch_dtype"] = config.pop("dtype", "float32")
    rope = config.pop("rope_parameters", None)
    if rope is not None:
        config["rope_theta"] = rope.pop("rope_theta")
        kind = rope.pop("rope_type")
        config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    config["transformers_version"] = "4.40.2"
