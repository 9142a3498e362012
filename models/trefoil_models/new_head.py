"""A trained body under another head: where a job begins that teaches a model a task it was not made for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trefoil_models import checkpoint
from trefoil_models.checkpoint import Model
from trefoil_models.config_keys import CheckpointError
from trefoil_models.heads import HEADS_OF_CLASSES
from trefoil_models.model_folder import ModelFolder

ENDS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForRewardModel", *HEADS_OF_CLASSES)
"""What may stand behind the family in a class name of transformers, `Model` last."""


@dataclass(frozen=True, slots=True)
class NewHead:
    """The end of the class that transformers has for the head, what it calls its outputs, and how they are meant."""

    end: str
    labels: tuple[str, ...] = ()
    problem_type: str | None = None


def load_under(
    folder: Path, head: NewHead, *, seed: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[Model, dict[str, Any]]:
    """The folder's model with this head, and the config.json that says so; what the folder lacks is fresh.

    Raises CheckpointError where the family has no such head.
    """
    blueprint = checkpoint.inspect(folder)
    config = headed_config(blueprint.folder, head)
    trained = blueprint.load(dtype=dtype, device=device)
    known = dict(trained.named_parameters())
    keeps_head = has_head(blueprint.folder, head)
    model = checkpoint.build(config, seed=seed, dtype=dtype)
    if not _can(model, head):
        raise CheckpointError(f"the family {blueprint.folder.model_type} has no head for {head.end}")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_body = name.partition(".")[0] not in model.outside or head.end in ("ForMaskedLM", "ForPreTraining")
            if name in known and (is_body or keeps_head) and known[name].shape == parameter.shape:
                parameter.copy_(known[name])
            parameter.requires_grad_(False)
    model.to(device)
    model.train(False)
    return model, config


def headed_config(folder: ModelFolder, head: NewHead) -> dict[str, Any]:
    """The folder's config.json for the same body under this head. Raises CheckpointError."""
    named = folder.architecture
    end = next((end for end in ENDS if named.endswith(end)), None)
    if end is None or folder.config.flag("is_encoder_decoder", False):
        raise CheckpointError(f"no other head can be put on {named}")
    config = {key: value for key, value in folder.config.values.items() if key not in ("num_labels", "problem_type")}
    config["architectures"] = [named.removesuffix(end) + head.end]
    if head.labels:
        config["id2label"] = {str(number): label for number, label in enumerate(head.labels)}
        config["label2id"] = {label: number for number, label in enumerate(head.labels)}
    if head.problem_type is not None:
        config["problem_type"] = head.problem_type
    if config.get("pad_token_id") in folder.eos_ids:
        del config["pad_token_id"]  # a decoder's head would not read the last row of a text that is ended
    return config


def has_head(folder: ModelFolder, head: NewHead) -> bool:
    """Was the folder made with this head for these very labels?"""
    is_same = any(name.endswith(head.end) for name in folder.architectures)
    return is_same and (not head.labels or folder.labels == head.labels)


def _can(model: Any, head: NewHead) -> bool:
    """Has the family all that the class asks for?"""
    try:
        heads: Mapping[str, object] = model.heads
    except KeyError:
        return False
    return set(HEADS_OF_CLASSES[head.end]) <= heads.keys()
