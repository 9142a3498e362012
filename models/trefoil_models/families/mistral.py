"""Mistral (`mistral`; Jiang et al., arXiv 2310.06825): llama with a sliding window."""

from trefoil_models.config_keys import MOST_LAYERS, Keys
from trefoil_models.families.llama import Config, Model, read_dense, read_layer_windows

__all__ = ["Config", "Model", "read_config"]

DEFAULT_WINDOW = 4096
DEFAULT_KV_HEADS = 8


def read_config(keys: Keys) -> Config:
    """An absent `sliding_window` or `num_key_value_heads` means 4096 or 8, a null one none or one a head."""
    window = None if keys.is_null("sliding_window") else keys.size("sliding_window", DEFAULT_WINDOW)
    windows = (window,) * keys.size("num_hidden_layers", most=MOST_LAYERS)
    if "layer_types" in keys:  # Ministral under Mistral's name
        windows = read_layer_windows(keys, window)
    return read_dense(keys, kv_heads=DEFAULT_KV_HEADS, max_positions=4096 * 32, windows=windows)
