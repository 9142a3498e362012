"""LoRA adapters in PEFT's file format, both ways: adapter_config.json and adapter_model.safetensors.

A tensor is named `base_model.model.<the layer's name in the published model>.lora_A.weight` (or lora_B).
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from trefoil_models.checkpoint import Model
from trefoil_models.config_keys import CheckpointError, Keys
from trefoil_models.layers import PackedLinear, Wrapped
from trefoil_models.lora import ALL_LINEAR, LoraShape, LowRank, wrapped_layers
from trefoil_models.model_folder import ADAPTER_CONFIG, read_json
from trefoil_models.weight_files import SafetensorsFile

CONFIG, WEIGHTS = ADAPTER_CONFIG, "adapter_model.safetensors"
PREFIX = "base_model.model."
HALF = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[AB])\.weight")
TASK_TYPES = {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM", "encoder": "FEATURE_EXTRACTION"}
MUST_BE_OFF = ("use_dora", "lora_bias", "modules_to_save", "layer_replication", "trainable_token_indices")
"""Keys that change the mathematics, or add weights that are no pair of low-rank matrices."""


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter's files, checked; `lows` by the layer's name within our model."""

    shape: LoraShape
    base: str
    lows: dict[str, LowRank]


def save_adapter(model: Model, folder: Path, shape: LoraShape, *, base: str) -> None:
    """Write the adapters of a wrapped model; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = wrapped_layers(model)
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        for half, matrix in (("A", layer.lora_down), ("B", layer.lora_up)):
            tensors[f"{PREFIX}{model.base_prefix}{name}.lora_{half}.weight"] = matrix.detach().cpu().contiguous()
    temporary = folder / f".{WEIGHTS}.part"
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.replace(folder / WEIGHTS)
    config = {
        "peft_type": "LORA",
        "task_type": TASK_TYPES[model.kind],
        "base_model_name_or_path": base,
        "r": shape.r,
        "lora_alpha": shape.alpha,
        "lora_dropout": shape.dropout,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "bias": "none",
        "fan_in_fan_out": bool(model.transposed),
        "inference_mode": True,
    }
    temporary = folder / f".{CONFIG}.part"
    temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / CONFIG)


def read_adapter(folder: Path, model: Model) -> AdapterFile:
    """An adapter for this model. Raises CheckpointError naming the file and what in it cannot be used."""
    keys = Keys(read_json(folder / CONFIG), file=CONFIG)
    _refuse(keys)
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{WEIGHTS} is missing in {folder}")
    file = SafetensorsFile(folder / WEIGHTS)
    halves: dict[str, dict[str, Tensor]] = {}
    for name in file.shapes:
        found = HALF.fullmatch(name)
        if found is None:
            raise CheckpointError(f"{WEIGHTS}: tensor {name} is no lora_A or lora_B matrix")
        layer = found["layer"].removeprefix(PREFIX).removeprefix(model.base_prefix)
        halves.setdefault(layer, {})[found["half"]] = file.read(name)
    lows = {layer: _low(keys, layer, pair, model) for layer, pair in halves.items()}
    if not lows:
        raise CheckpointError(f"{WEIGHTS} holds no tensors")
    return AdapterFile(_shape(keys), keys.text("base_model_name_or_path", ""), lows)


def _refuse(keys: Keys) -> None:
    if keys.text("peft_type", "LORA") != "LORA":
        raise CheckpointError(f"{CONFIG}: peft_type = {keys.text('peft_type')!r} is not supported; known: LORA")
    for name in MUST_BE_OFF:
        if keys.values.get(name):
            raise CheckpointError(f"{CONFIG}: {name} is not supported")
    if keys.text("bias", "none") != "none":
        raise CheckpointError(f"{CONFIG}: bias = {keys.text('bias')!r} is not supported; known: none")


def _shape(keys: Keys) -> LoraShape:
    targets = keys.values.get("target_modules")
    names = tuple(targets) if isinstance(targets, list) else (ALL_LINEAR,)
    return LoraShape(keys.size("r"), keys.number("lora_alpha", 8.0), keys.number("lora_dropout", 0.0), names)


def _low(keys: Keys, layer: str, pair: dict[str, Tensor], model: Model) -> LowRank:
    if pair.keys() != {"A", "B"}:
        raise CheckpointError(f"{WEIGHTS}: layer {layer} has only its lora_{next(iter(pair))}")
    down_RM, up_OR = pair["A"], pair["B"]
    outs, inputs = shape = _weight_shape(model, layer)
    rank = len(down_RM) if down_RM.dim() == 2 else 0
    if not rank or down_RM.shape != (rank, inputs) or up_OR.shape != (outs, rank):
        raise CheckpointError(
            f"{WEIGHTS}: layer {layer} is adapted by {list(down_RM.shape)} and {list(up_OR.shape)}, "
            f"the model's weight is {list(shape)}"
        )
    alpha = _pattern(keys, "alpha_pattern", layer, keys.number("lora_alpha", 8.0))
    return LowRank(down_RM, up_OR, alpha / (math.sqrt(rank) if keys.flag("use_rslora", False) else rank))


def _weight_shape(model: Any, layer: str) -> tuple[int, int]:
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        raise CheckpointError(f"{WEIGHTS}: the model has no layer {layer}") from None
    module = module.base if isinstance(module, Wrapped) else module
    if not isinstance(module, nn.Linear | PackedLinear):
        raise CheckpointError(f"{WEIGHTS}: {layer} is no linear layer within the model; only these can be adapted")
    return module.out_features, module.in_features


def _pattern(keys: Keys, name: str, layer: str, default: float) -> float:
    """A value that some layers have for themselves, by a regular expression on their name, as PEFT reads it."""
    values = keys.inside(name)
    for key in values.values:
        try:
            is_its_own = re.match(rf"(.*\.)?({key})$", layer)
        except re.error as error:
            raise CheckpointError(f"{CONFIG}: {name} has {key!r}, which is no regular expression: {error}") from error
        if is_its_own:
            return values.number(key)
    return default
