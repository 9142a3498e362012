"""Qwen 1.5, 2 and 2.5 (`qwen2`; arXiv 2407.10671): llama with biases on q, k and v, and windows above a layer."""

from trefoil_models.config_keys import MOST_LAYERS, Keys
from trefoil_models.families.llama import Config, Model, read_dense, read_layer_windows

__all__ = ["Config", "Model", "read_config", "read_window", "read_windows"]


def read_config(keys: Keys) -> Config:
    """Qwen 2's own keys and defaults. Raises CheckpointError."""
    return read_dense(keys, max_positions=32768, windows=read_windows(keys), qkv_bias=True)


def read_windows(keys: Keys) -> tuple[int | None, ...]:
    """One window a layer: by `layer_types`, else from `max_window_layers` on, where `use_sliding_window` says so."""
    num_layers, window = keys.size("num_hidden_layers", most=MOST_LAYERS), read_window(keys)
    if "layer_types" in keys:
        return read_layer_windows(keys, window)
    first = keys.integer("max_window_layers", 28)
    return tuple(window if site >= first else None for site in range(num_layers))


def read_window(keys: Keys) -> int | None:
    """How many keys a row sees in layers that have a window; None where the file does not want any."""
    has_windows = keys.flag("use_sliding_window", False) and not keys.is_null("sliding_window")
    return keys.size("sliding_window", 4096) if has_windows else None
