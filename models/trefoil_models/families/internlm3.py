"""InternLM 3 (`internlm3`; Shanghai AI Laboratory 2025): llama with biases asked for by two keys of its own."""

from trefoil_models.config_keys import Keys
from trefoil_models.families.llama import Config, Model, read_dense

__all__ = ["Config", "Model", "read_config"]

DEFAULT_KV_HEADS = 2
DEFAULT_HEAD_DIM = 128


def read_config(keys: Keys) -> Config:
    """`qkv_bias` is of queries, keys and values, `bias` of all else; transformers calls them as llama's are called."""
    has_bias = keys.flag("bias", keys.flag("mlp_bias", False))
    return read_dense(
        keys,
        kv_heads=DEFAULT_KV_HEADS,
        head_dim=None if keys.is_null("head_dim") else DEFAULT_HEAD_DIM,
        max_positions=32768,
        qkv_bias=keys.flag("qkv_bias", keys.flag("attention_bias", False)),
        out_bias=has_bias,
        mlp_bias=has_bias,
        eps=1e-5,
    )
