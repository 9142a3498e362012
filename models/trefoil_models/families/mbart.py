"""mBART and mBART-50 (`mbart`; Liu et al., arXiv 2001.08210): BART with its norms before the sublayers."""

from trefoil_models.config_keys import Keys
from trefoil_models.families.bart import Config, Model, read_shape

__all__ = ["Config", "Model", "read_config"]


def read_config(keys: Keys) -> Config:
    """BART's keys and defaults. Raises CheckpointError."""
    return read_shape(keys, norms_first=True)
