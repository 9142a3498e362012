"""Weights stored in 8-bit floats are read as what they stand for."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from trefoil_models import checkpoint
from trefoil_models.config_keys import CheckpointError

BLOCK = 16
HEAVIEST = 448.0


def to_float8(folder: Path) -> dict[str, Tensor]:
    """Rewrite a folder's matrices as DeepSeek-V3's files have them; the numbers that they then stand for."""
    tensors = load_file(folder / "model.safetensors")
    stored, meant = dict(tensors), dict(tensors)
    for name, weight in tensors.items():
        if "_proj" in name and weight.dim() == 2:
            scales = torch.zeros(-(-len(weight) // BLOCK), -(-weight.shape[1] // BLOCK))
            values, whole = torch.zeros_like(weight), torch.zeros_like(weight)
            for i, j in ((i, j) for i in range(scales.shape[0]) for j in range(scales.shape[1])):
                part = slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK)
                scales[i, j] = weight[part].abs().max() / HEAVIEST
                values[part] = weight[part] / scales[i, j]
                whole[part] = values[part].to(torch.float8_e4m3fn).float() * scales[i, j]
            stored[name], stored[f"{name}_scale_inv"], meant[name] = values.to(torch.float8_e4m3fn), scales, whole
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    about = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
    }
    tiny.edit_config(folder, lambda config: config.update(quantization_config=about))
    return meant


def test_they_are_read_and_saved_as_whole_numbers(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "m", "deepseek_v3")
    meant = to_float8(folder)
    model = checkpoint.load(folder)
    config = json.loads((folder / "config.json").read_text())
    checkpoint.save(model, tmp_path / "again", config)
    saved = load_file(tmp_path / "again" / "model.safetensors")
    assert saved.keys() == meant.keys()
    assert all(torch.equal(saved[name], meant[name]) for name in meant)
    checkpoint.load(tmp_path / "again")


def test_a_missing_scale_and_another_method_are_named(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "deepseek_v3")
    to_float8(folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.o_proj.weight_scale_inv"
    scales = tensors.pop(name)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        checkpoint.load(folder)
    norm = "model.norm.weight"
    narrow = {norm: tensors[norm].to(torch.float8_e4m3fn), f"{norm}_scale_inv": torch.ones(1), name: scales}
    save_file(tensors | narrow, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="only matrices"):
        checkpoint.load(folder)
    tiny.edit_config(folder, lambda config: config["quantization_config"].update(activation_scheme="static"))
    with pytest.raises(CheckpointError, match=r"quantization_config\.activation_scheme"):
        checkpoint.inspect(folder)


def test_layers_that_predict_further_tokens_are_not_read(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "deepseek_v3")
    tensors = load_file(folder / "model.safetensors")
    tensors |= {f"model.layers.2.{name}": torch.zeros(32, 64) for name in ("eh_proj.weight", "embed_tokens.weight")}
    save_file(tensors, folder / "model.safetensors")
    assert checkpoint.load(folder).config.num_layers == 2
