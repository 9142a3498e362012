"""DeepSeek-MoE (`deepseek`; Dai et al., arXiv 2401.06066): llama with many small experts and one that all rows share.

The first layers keep a plain feed-forward.
"""

from dataclasses import replace

from trefoil_models.config_keys import MOST_LAYERS, CheckpointError, Keys
from trefoil_models.families.llama import Config, Model, read_dense
from trefoil_models.mixture import MixtureShape, read_choice
from trefoil_models.routing import SoftmaxTop

__all__ = ["Config", "Model", "in_deep_layers", "read_config", "shared_inner"]

MOST_SHARED = 1024


def read_config(keys: Keys) -> Config:
    """DeepSeek-MoE's own keys and defaults. Raises CheckpointError."""
    keys.refuse("scoring_func", "softmax")
    has_bias = keys.flag("attention_bias", False)
    dense = read_dense(keys, qkv_bias=has_bias, out_bias=has_bias)
    if "n_routed_experts" not in keys:
        return dense
    num_experts, top_k = read_choice(keys, "n_routed_experts")
    mixture = MixtureShape(
        num_experts,
        keys.size("moe_intermediate_size", 1407),
        SoftmaxTop(top_k, is_normalised=top_k > 1 and keys.flag("norm_topk_prob", False)),
        shared_inner=shared_inner(keys, keys.size("moe_intermediate_size", 1407)),
    )
    return replace(dense, mixtures=in_deep_layers(keys, mixture))


def shared_inner(keys: Keys, inner: int, default: int = 0) -> int:
    """The width of the shared experts, which are computed as one; 0 where there are none."""
    count = keys.integer("n_shared_experts", default)
    if count > MOST_SHARED:
        raise CheckpointError(f"config.json: n_shared_experts {count} is more than {MOST_SHARED}")
    return count * inner


def in_deep_layers(keys: Keys, mixture: MixtureShape, first: int = 0) -> tuple[MixtureShape | None, ...]:
    """A mixture in each layer from `first_k_dense_replace` on whose number `moe_layer_freq` divides."""
    first, every = keys.integer("first_k_dense_replace", first), keys.size("moe_layer_freq", 1)
    num_layers = keys.size("num_hidden_layers", most=MOST_LAYERS)
    return tuple(mixture if site >= first and site % every == 0 else None for site in range(num_layers))
