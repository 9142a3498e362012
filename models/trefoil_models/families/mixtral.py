"""Mixtral (`mixtral`; Jiang et al., arXiv 2401.04088): llama whose feed-forwards are mixtures of experts."""

from dataclasses import replace
from typing import ClassVar

from trefoil_models.config_keys import MOST_LAYERS, Keys
from trefoil_models.families import llama
from trefoil_models.families.llama import Config, read_dense
from trefoil_models.mixture import MixtureShape, read_balance, read_choice
from trefoil_models.routing import SoftmaxTop

__all__ = ["Config", "Model", "read_config"]

DEFAULT_KV_HEADS = 8
DEFAULT_THETA = 1e6


def read_config(keys: Keys) -> Config:
    """Mixtral's own keys and defaults; the weights of a row's experts sum to one. Raises CheckpointError."""
    num_layers = keys.size("num_hidden_layers", most=MOST_LAYERS)
    window = keys.size("sliding_window") if "sliding_window" in keys else None
    num_experts, top_k = read_choice(keys, "num_local_experts", num_experts=8, top_k=2)
    mixture = MixtureShape(
        num_experts,
        keys.size("intermediate_size"),
        SoftmaxTop(top_k, is_normalised=True),
        names=("w1", "w3", "w2"),
        balance=read_balance(keys),
    )
    dense = read_dense(
        keys,
        kv_heads=DEFAULT_KV_HEADS,
        max_positions=4096 * 32,
        windows=(window,) * num_layers,
        eps=1e-5,
        theta=DEFAULT_THETA,
    )
    return replace(dense, mixtures=(mixture,) * num_layers)


class Layer(llama.Layer):
    """Whose feed-forward is called what Mixtral's files call it."""

    mlp_name: ClassVar[str] = "block_sparse_moe"


class Model(llama.Model):
    """Llama's, of these layers."""

    layer: ClassVar[type[llama.Layer]] = Layer
