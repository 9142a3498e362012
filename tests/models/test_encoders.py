"""Every encoder family and head gives transformers' scores, ragged texts and pairs in one pass."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
import tiny_encoders
from trefoil_models import checkpoint
from trefoil_models.attend import packed_rows
from trefoil_models.config_keys import CheckpointError

LENS = (33, 1, 50, 7)


def rename(folder: Path, change) -> None:
    tensors = {change(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "new", metadata={"format": "pt"})
    (folder / "new").replace(folder / "model.safetensors")


def test_a_missing_head_is_reported_not_random(tmp_path: Path) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "bert", "ForMaskedLM")
    tiny.edit_config(folder, lambda config: config.update(architectures=["BertForTokenClassification"]))
    with pytest.raises(CheckpointError, match=r"classifier\.weight is missing"):
        checkpoint.inspect(folder)


def test_old_norm_names_and_absent_prefix_load(tmp_path: Path) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "bert", "ForTokenClassification")
    before = hidden(folder)
    rename(folder, lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").removeprefix("bert."))
    assert torch.equal(hidden(folder), before)


def hidden(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return checkpoint.load(folder)(*packed_rows(tiny.draw_ids(*LENS, vocab=tiny_encoders.VOCAB)))


def test_a_class_nobody_serves_is_named(tmp_path: Path) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "bert", "ForMultipleChoice")
    with pytest.raises(CheckpointError, match="BertForMultipleChoice"):
        checkpoint.inspect(folder)


def test_labels_must_be_counted_through(tmp_path: Path) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "bert", "ForTokenClassification")
    tiny.edit_config(folder, lambda config: config.update(id2label={"1": "A", "2": "B"}))
    with pytest.raises(CheckpointError, match="id2label"):
        checkpoint.inspect(folder)
