"""GLM-4 (`glm`; arXiv 2406.12793), the releases for transformers: llama whose neighbours turn, in half of each head.

One projection makes gate and up.
"""

from trefoil_models.config_keys import Keys
from trefoil_models.families import llama
from trefoil_models.families.llama import Config, read_dense

__all__ = ["Config", "Model", "read_config"]


def read_config(keys: Keys) -> Config:
    """GLM-4's own keys and defaults; `attention_bias` is of q, k and v alone. Raises CheckpointError."""
    return read_dense(
        keys,
        kv_heads=2,
        head_dim=128,
        max_positions=131072,
        partial=0.5,
        qkv_bias=keys.flag("attention_bias", True),
        fuses_gate_up=True,
        eps=1.5625e-07,
    )


class Model(llama.Model):
    """Llama's, turning neighbours."""

    run = 1
