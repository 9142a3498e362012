"""Qwen 3 with experts (`qwen3_moe`; arXiv 2505.09388): Qwen 3 whose layers hold many experts, none of them shared."""

from dataclasses import replace

from trefoil_models.config_keys import MOST_LAYERS, Keys
from trefoil_models.families.llama import Config, Model, read_dense
from trefoil_models.families.qwen2 import read_window
from trefoil_models.families.qwen2_moe import in_sparse_layers
from trefoil_models.mixture import MixtureShape, read_balance, read_choice
from trefoil_models.routing import SoftmaxTop

__all__ = ["Config", "Model", "read_config"]

DEFAULT_KV_HEADS = 4


def read_config(keys: Keys) -> Config:
    """Qwen3-MoE's own keys and defaults; its head width follows from the width. Raises CheckpointError."""
    name = "num_local_experts" if "num_local_experts" in keys else "num_experts"  # as transformers 5 and the Hub say it
    num_experts, top_k = read_choice(keys, name, num_experts=128, top_k=8)
    mixture = MixtureShape(
        num_experts,
        keys.size("moe_intermediate_size", 768),
        SoftmaxTop(top_k, is_normalised=keys.flag("norm_topk_prob", False)),
        balance=read_balance(keys),
    )
    has_bias = keys.flag("attention_bias", False)
    dense = read_dense(
        keys,
        kv_heads=DEFAULT_KV_HEADS,
        max_positions=32768,
        windows=(read_window(keys),) * keys.size("num_hidden_layers", most=MOST_LAYERS),
        qkv_bias=has_bias,
        out_bias=has_bias,
        has_qk_norm=True,
    )
    return replace(dense, mixtures=in_sparse_layers(keys, mixture))
