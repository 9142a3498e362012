"""InternLM 1 (`internlm`; Shanghai AI Laboratory 2023): llama with biases on all of the attention's projections.

The release keeps keys as they were before they turned, and beyond the trained length turns all of them anew with each
token. Pages hold turned keys, so nothing longer is answered here; a whole text in one pass is read as the release does.
"""

from dataclasses import dataclass

from trefoil_models.config_keys import Keys
from trefoil_models.families import llama
from trefoil_models.families.llama import Model, read_dense
from trefoil_models.rotary_scaling import plain_scaling

__all__ = ["Config", "Model", "read_config"]

KINDS = {"origin": "default", "dynamic": "dynamic"}


@dataclass(frozen=True, slots=True)
class Config(llama.Config):
    """Llama's, never longer than what the model was trained for."""

    @property
    def longest(self) -> int:
        return self.scaling.max_positions


def read_config(keys: Keys) -> Config:
    """InternLM's own keys and defaults: `bias`, and `rotary` for how heads turn. Raises CheckpointError."""
    has_bias, rotary = keys.flag("bias", True), keys.inside("rotary")
    dense = read_dense(keys, qkv_bias=has_bias, out_bias=has_bias)
    scaling = plain_scaling(
        KINDS[rotary.choice("type", KINDS, "dynamic")],
        width=dense.head_dim,
        theta=rotary.number("base", 10000.0),
        max_positions=dense.scaling.max_positions,
        factor=rotary.number("scaling_factor", 1.0),
    )
    return Config.of(dense, scaling=scaling)
