"""GPT-3 as its paper has it (`gpt3`; Brown et al., arXiv 2005.14165, section 2.1): gpt2 with local layers between.

No weights were ever published, nor how wide the band of the sparse layers is; both are config.json's to say. Without
`attention_layers` every second layer is local, as GPT-Neo's are.
"""

from dataclasses import replace

from trefoil_models.config_keys import CheckpointError, Keys
from trefoil_models.families import gpt2
from trefoil_models.families.gpt2 import Config, Model
from trefoil_models.families.gpt_neo import KINDS, layer_windows

__all__ = ["Config", "Model", "read_config"]


def read_config(keys: Keys) -> Config:
    """GPT-2's keys, GPT-3's context, and which layers are local. Raises CheckpointError."""
    longest = keys.size("n_positions", 2048)
    dense = gpt2.read_config(Keys({**keys.values, "n_positions": longest}, keys.path, keys.file))
    kinds = keys.strings("attention_layers", [KINDS[site % 2] for site in range(dense.num_layers)])
    if len(kinds) != dense.num_layers or not set(kinds) <= set(KINDS):
        raise CheckpointError(f"config.json: attention_layers must be {dense.num_layers} of {KINDS}, got {kinds}")
    return replace(dense, windows=layer_windows(keys, kinds))
