"""Numbers for every hyperparameter that was left "auto", from the data and the model; all are told to the user."""

from typing import Any

import msgspec

from trefoil.hyperparameters import Dpo, Hyperparameters, Sampled
from trefoil_models.model_folder import ModelFolder

USUAL_EPOCHS, MOST_EPOCHS = 3, 25
FEW_EXAMPLES, MANY_EXAMPLES = 100, 25_000
"""Over all epochs: fewer are repeated more often, more are not repeated."""
EXAMPLES_PER_BATCH, MOST_BATCH = 50, 32
WIDTH_KEYS = ("hidden_size", "n_embd", "d_model")
BASE_WIDTH = 2000
WIDTH_POWER = 0.78
"""Narrow models want larger steps: the rate falls with about this power of the width."""
LORA_RATE = 5e-4
PROMPTS_PER_BATCH = 16
"""Fewer prompts a step, and their answers say little of what is better."""
FULL_SHARE, DPO_SHARE, SAMPLED_SHARE = 0.1, 0.2, 0.1
"""All weights at once want a tenth of an adapter's rate; preferences a fifth, own answers a tenth of what given answers
want.
"""
USUAL_BETA = 0.1
DENSITY, INFILLING_DENSITY = 0.15, 0.3
"""How much of a text T5 and BART take out of it."""


def resolve(given: Hyperparameters, *, num_examples: int, width: int) -> Hyperparameters:
    """The same with a number in every place."""
    found: dict[str, Any] = {
        "n_epochs": num_epochs(num_examples),
        "batch_size": batch_size(given, num_examples),
        "learning_rate_multiplier": 1.0,
        "beta": USUAL_BETA,
        "noise_density": INFILLING_DENSITY if getattr(given, "objective", None) == "text_infilling" else DENSITY,
    }
    fields = {name: value for name, value in found.items() if getattr(given, name, None) == "auto"}
    known = msgspec.structs.replace(given, **fields)
    if known.learning_rate == "auto":
        assert not isinstance(known.learning_rate_multiplier, str)
        rate = usual_rate(known, width=width) * known.learning_rate_multiplier
        known = msgspec.structs.replace(known, learning_rate=float(f"{rate:.3g}"))
    return known


def batch_size(given: Hyperparameters, num_examples: int) -> int:
    """A fiftieth of the examples; of prompts as many as tell good answers from bad ones."""
    if isinstance(given, Sampled):
        return min(PROMPTS_PER_BATCH, num_examples)
    return max(1, min(MOST_BATCH, num_examples // EXAMPLES_PER_BATCH))


def num_epochs(num_examples: int) -> int:
    """Three, unless the examples are very few or very many."""
    if num_examples * USUAL_EPOCHS < FEW_EXAMPLES:
        return min(MOST_EPOCHS, FEW_EXAMPLES // num_examples)
    if num_examples * USUAL_EPOCHS > MANY_EXAMPLES:
        return max(1, MANY_EXAMPLES // num_examples)
    return USUAL_EPOCHS


def usual_rate(given: Hyperparameters, *, width: int) -> float:
    """The learning rate that suits the method, the number of weights it trains, and the model's width."""
    rate = LORA_RATE * (BASE_WIDTH / width) ** WIDTH_POWER
    rate *= FULL_SHARE if given.lora is None else 1.0
    if isinstance(given, Sampled):
        return rate * SAMPLED_SHARE
    return rate * (DPO_SHARE if isinstance(given, Dpo) else 1.0)


def width_of(folder: ModelFolder) -> int:
    """The model's width by whichever name its config.json has for it."""
    return next((folder.config.size(key) for key in WIDTH_KEYS if key in folder.config), BASE_WIDTH)
