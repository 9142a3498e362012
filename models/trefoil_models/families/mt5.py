"""mT5 (`mt5`; Xue et al., arXiv 2010.11934): T5 v1.1 over a hundred languages; the head never sees scaled rows."""

from trefoil_models.config_keys import Keys
from trefoil_models.families.t5 import Config, Model, read_shape

__all__ = ["Config", "Model", "read_config"]

DEFAULTS = {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu"}
"""Where absent keys mean something else than in T5."""


def read_config(keys: Keys) -> Config:
    """T5's keys under mT5's defaults. Raises CheckpointError."""
    given = {name: value for name, value in keys.values.items() if value is not None}
    return read_shape(Keys({**DEFAULTS, **given}), output_scale=1.0)
