"""DeepSeek-V3 and R1 (`deepseek_v3`; arXiv 2412.19437): V2 with a router that a bias keeps balanced.

The layers beyond the last that predict further tokens are no part of plain decoding, and not read.
"""

from trefoil_models.config_keys import Keys
from trefoil_models.families.deepseek import in_deep_layers, shared_inner
from trefoil_models.families.deepseek_v2 import Config, Model, read_groups, read_latent
from trefoil_models.mixture import MixtureShape, read_choice
from trefoil_models.routing import SigmoidTop

__all__ = ["Config", "Model", "read_config"]

DEFAULT_GROUPS = {"n_group": 8, "topk_group": 4}


def read_config(keys: Keys) -> Config:
    """DeepSeek-V3's own keys and defaults. Raises CheckpointError."""
    keys.refuse("scoring_func", "sigmoid")
    keys.refuse("topk_method", "noaux_tc")
    num_experts, top_k = read_choice(keys, "n_routed_experts", num_experts=256, top_k=8)
    inner = keys.size("moe_intermediate_size", 2048)
    groups, kept = read_groups(Keys({**DEFAULT_GROUPS, **keys.values}), num_experts, smallest=2)
    mixture = MixtureShape(
        num_experts,
        inner,
        SigmoidTop(
            top_k,
            is_normalised=keys.flag("norm_topk_prob", True),
            scale=keys.number("routed_scaling_factor", 2.5),
            groups=groups,
            kept_groups=kept,
        ),
        has_choice_bias=True,
        shared_inner=shared_inner(keys, inner, 1),
    )
    return read_latent(
        keys,
        in_deep_layers(keys, mixture, 3),
        max_positions=4096,
        is_interleaved=keys.flag("rope_interleave", True),
    )
