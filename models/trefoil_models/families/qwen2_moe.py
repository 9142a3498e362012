"""Qwen 1.5 and 2 with experts (`qwen2_moe`; arXiv 2407.10671): Qwen 2 whose layers hold many experts and a shared one.

How much the shared expert counts is a gate's business, row by row.
"""

from dataclasses import replace

from trefoil_models.config_keys import MOST_LAYERS, Keys
from trefoil_models.families.llama import Config, Model, read_dense, read_layer_windows
from trefoil_models.families.qwen2 import read_window
from trefoil_models.mixture import MixtureShape, read_balance, read_choice
from trefoil_models.routing import SoftmaxTop

__all__ = ["Config", "Model", "in_sparse_layers", "read_config"]

DEFAULT_KV_HEADS = 16


def read_config(keys: Keys) -> Config:
    """Qwen2-MoE's own keys and defaults. Raises CheckpointError."""
    num_experts, top_k = read_choice(keys, "num_experts", num_experts=60, top_k=4)
    mixture = MixtureShape(
        num_experts,
        keys.size("moe_intermediate_size", 1408),
        SoftmaxTop(top_k, is_normalised=keys.flag("norm_topk_prob", False)),
        shared="shared_expert",
        shared_inner=keys.size("shared_expert_intermediate_size", 5632),
        has_shared_gate=True,
        balance=read_balance(keys),
    )
    dense = read_dense(
        keys,
        kv_heads=DEFAULT_KV_HEADS,
        max_positions=32768,
        windows=_read_windows(keys),
        qkv_bias=keys.flag("qkv_bias", True),
    )
    return replace(dense, mixtures=in_sparse_layers(keys, mixture))


def in_sparse_layers(keys: Keys, mixture: MixtureShape) -> tuple[MixtureShape | None, ...]:
    """A mixture in every `decoder_sparse_step`-th layer, but for the `mlp_only_layers`."""
    step, without = keys.size("decoder_sparse_step", 1), keys.integers("mlp_only_layers", [])
    num_layers = keys.size("num_hidden_layers", most=MOST_LAYERS)
    return tuple(mixture if (site + 1) % step == 0 and site not in without else None for site in range(num_layers))


def _read_windows(keys: Keys) -> tuple[int | None, ...]:
    """By `layer_types`, else on every second layer, from the first to `max_window_layers`, where the file wants it."""
    num_layers, window = keys.size("num_hidden_layers", most=MOST_LAYERS), read_window(keys)
    if "layer_types" in keys:
        return read_layer_windows(keys, window)
    end = keys.integer("max_window_layers", 28)
    return tuple(window if site % 2 == 0 and site < end else None for site in range(num_layers))
