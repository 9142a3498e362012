"""Servable model folders of named shapes with random weights, for when speed is asked and sense is not.

    python benchmarks/shapes.py llama-110m /some/folder

Every id of the vocabulary has a text of its own, so turning ids to text costs what it costs with a real model.
"""

import argparse
import itertools
import json
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from trefoil_models import checkpoint
from trefoil_models.checkpoint import DTYPES
from trefoil_models.config_keys import Keys
from trefoil_models.families import t5

END = "<|end|>"
END_ID = 0

SHAPES: dict[str, dict[str, Any]] = {
    # 494M parameters, the published config.json of Qwen2.5-0.5B
    "qwen2.5-0.5b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    },
    # 1.3B parameters: two of the 48 layers of Qwen3-30B-A3B, with a small vocabulary
    "qwen3-30b-a3b-2l": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": 32000,
        "hidden_size": 2048,
        "num_hidden_layers": 2,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
    # 1.4B parameters: the first three of the 27 layers of DeepSeek-V2-Lite, with a small vocabulary
    "deepseek-v2-lite-3l": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "vocab_size": 32000,
        "hidden_size": 2048,
        "num_hidden_layers": 3,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
    # 109.5M parameters, as the head is the embedding (134M if it were not)
    "llama-110m": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "intermediate_size": 2048,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    },
    # 60.5M parameters, the published config.json of T5-small
    "t5-small": {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_heads": 8,
        "feed_forward_proj": "relu",
        "n_positions": 512,
        "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": True,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
    },
    # 248M parameters, the published config.json of flan-T5-base
    "flan-t5-base": {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": 768,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 12,
        "num_heads": 12,
        "feed_forward_proj": "gated-gelu",
        "n_positions": 512,
        "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
    },
    # weights drawn large, so that greedy answers wander and a mistake shows
    "tiny": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 1000,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "initializer_range": 0.3,
    },
    "tiny-t5": {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": 1000,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_heads": 4,
        "n_positions": 512,
        "tie_word_embeddings": True,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
    },
}


def make_checkpoint(shape: str, folder: Path, dtype: torch.dtype) -> Path:
    """Write a servable folder of that shape, the same every time, and return it."""
    config = {**SHAPES[shape], "bos_token_id": END_ID, "eos_token_id": END_ID}
    std_of = t5.initial_std(t5.read_config(Keys(config))) if config["model_type"] == "t5" else None
    checkpoint.save(checkpoint.build(config, seed=0, dtype=dtype, std_of=std_of), folder, config)
    write_tokenizer(folder, config["vocab_size"], config.get("max_position_embeddings", config.get("n_positions")))
    generation = {"bos_token_id": END_ID, "eos_token_id": END_ID}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    return folder


def write_tokenizer(folder: Path, vocab_size: int, max_len: int) -> None:
    """tokenizer.json and tokenizer_config.json: the end, every byte, then invented words up to `vocab_size`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ("Ġ" + "".join(word) for word in itertools.product(string.ascii_lowercase, repeat=4))
    tokens = [END, *letters, *itertools.islice(words, vocab_size - len(letters) - 1)]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "model_max_length": max_len,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write one folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    given = parser.parse_args()
    print(make_checkpoint(given.shape, given.folder, DTYPES[given.dtype]))


if __name__ == "__main__":
    main()
