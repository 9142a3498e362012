"""Qwen 3, dense (`qwen3`; arXiv 2505.09388): Qwen 2 without biases, with a norm on each head's query and key."""

from trefoil_models.config_keys import Keys
from trefoil_models.families.llama import Config, Model, read_dense
from trefoil_models.families.qwen2 import read_windows

__all__ = ["Config", "Model", "read_config"]


def read_config(keys: Keys) -> Config:
    """`head_dim` is 128 unless the file says otherwise, whatever the width. Raises CheckpointError."""
    has_bias = keys.flag("attention_bias", False)
    return read_dense(
        keys,
        head_dim=128,
        max_positions=32768,
        windows=read_windows(keys),
        qkv_bias=has_bias,
        out_bias=has_bias,
        has_qk_norm=True,
    )
