"""Adapters in PEFT's format, both ways: what is trained here runs in peft with the same logits, and the reverse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import tiny
from trefoil_models import checkpoint
from trefoil_models.adapter_files import read_adapter, save_adapter
from trefoil_models.attend import packed_rows
from trefoil_models.checkpoint import Model
from trefoil_models.config_keys import CheckpointError
from trefoil_models.lora import LoraShape, TargetError, attach, attach_given, merge

pytestmark = pytest.mark.filterwarnings("ignore")  # peft's own
TARGETS = {"gpt2": ("c_attn", "c_fc"), "llama": ("q_proj", "down_proj"), "qwen3": ("all-linear",)} | {
    "mixtral": ("all-linear",),  # each expert too, which peft gathers into one
    "qwen3_moe": ("all-linear",),
    "deepseek_v3": ("q_b_proj", "kv_b_proj", "o_proj"),
}
IDS = tiny.draw_ids(19)[0]


@torch.no_grad()
def logits(model: Model) -> torch.Tensor:
    return model.lm_head.logits(model(*packed_rows([IDS])))


def tuned(folder: Path, shape: LoraShape) -> Model:
    """The folder's model with an adapter that says something."""
    model = checkpoint.load(folder)
    generator = torch.Generator().manual_seed(3)
    for layer in attach(model, shape, seed=1).values():
        torch.nn.init.normal_(layer.lora_up, 0, 0.1, generator=generator)
    return model


def their_adapter(folder: Path, out: Path, **options: Any) -> PeftModel:
    """An adapter that peft made and saved."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": "all-linear", **options})
    theirs = get_peft_model(tiny.oracle(folder), config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=generator)
    theirs.save_pretrained(out)
    return theirs.eval()


@pytest.mark.parametrize("family", TARGETS)
def test_adapter_saved_here_gives_the_same_logits_in_peft(family: str, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "base", family)
    shape = LoraShape(r=4, alpha=6.0, targets=TARGETS[family])
    model = tuned(folder, shape)
    save_adapter(model, tmp_path / "adapter", shape, base="base")
    theirs = PeftModel.from_pretrained(tiny.oracle(folder), tmp_path / "adapter")
    torch.testing.assert_close(logits(model), tiny.oracle_logits(theirs, IDS), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(model), logits(checkpoint.load(folder)), atol=1e-2)


@pytest.mark.parametrize("family", tiny.TRANSFORMERS)
def test_adapter_of_every_family_says_the_same_merged_in_transformers(family: str, tmp_path: Path) -> None:
    """On all linear layers, saved, read and merged: of experts beside shared ones peft itself reads only some."""
    folder = tiny.checkpoint(tmp_path / "base", family)
    shape = LoraShape(r=4, alpha=6.0)
    model = tuned(folder, shape)
    wanted = logits(model)
    save_adapter(model, tmp_path / "adapter", shape, base="base")
    whole = checkpoint.load(folder)
    attach_given(whole, read_adapter(tmp_path / "adapter", whole).lows)
    merge(whole)
    checkpoint.save(whole, tmp_path / "merged", json.loads((folder / "config.json").read_text()))
    torch.testing.assert_close(tiny.oracle_logits(tiny.oracle(tmp_path / "merged"), IDS), wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(wanted, logits(checkpoint.load(folder)), atol=1e-2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 32}},
        {"target_modules": ["v_proj"]},
    ],
    ids=str,
)
def test_adapter_of_peft_gives_the_same_logits_here(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = tiny.checkpoint(tmp_path / "base", "llama")
    theirs = their_adapter(folder, tmp_path / "adapter", **options)
    model = checkpoint.load(folder)
    attach_given(model, read_adapter(tmp_path / "adapter", model).lows)
    wanted = tiny.oracle_logits(theirs, IDS)
    torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=1e-4)
    merge(model)
    torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=1e-4)


def test_fresh_adapter_changes_nothing_and_is_decided_by_the_seed(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "base", "llama")
    base, model = checkpoint.load(folder), checkpoint.load(folder)
    layers = attach(model, LoraShape(), seed=1)
    assert torch.equal(logits(model), logits(base))
    assert len(layers) == 14
    again = attach(base, LoraShape(), seed=1)
    assert all(torch.equal(layers[name].lora_down, again[name].lora_down) for name in layers)
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lora_" not in name)


def test_unknown_target_is_refused_by_name(tmp_path: Path) -> None:
    model = checkpoint.load(tiny.checkpoint(tmp_path / "base", "llama"))
    with pytest.raises(TargetError, match=r"'wq' is no linear layer.*q_proj"):
        attach(model, LoraShape(targets=("wq",)), seed=0)


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return spoil


def drop_half(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(next(name for name in tensors if "lora_B" in name))


def shape_half(half: str, *shape: int) -> Callable[[Path], None]:
    return change_tensors(lambda tensors: tensors.update({n: torch.zeros(shape) for n in tensors if half in n}))


def set_key(name: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    return change


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (set_key("peft_type", "IA3"), "peft_type = 'IA3'"),
        (set_key("use_dora", True), "use_dora"),
        (set_key("modules_to_save", ["lm_head"]), "modules_to_save"),
        (set_key("bias", "all"), "bias = 'all'"),
        (set_key("r", "x"), "r = 'x'"),
        (set_key("alpha_pattern", {"q_proj": "much"}), r"alpha_pattern\.q_proj = 'much'"),
        (set_key("alpha_pattern", {"q_(proj": 1.0}), "no regular expression"),
        (set_key("alpha_pattern", ["q_proj"]), "alpha_pattern"),
        (change_tensors(drop_half), "has only its lora_A"),
        (shape_half("lora_A", 64), r"is adapted by \[64\]"),
        (shape_half("lora_A", 0, 32), r"is adapted by \[0, 32\]"),
        (shape_half("lora_B", 32, 3), r"and \[32, 3\]"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 40), "is damaged"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "is missing"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "is missing"),
    ],
)
def test_adapter_that_cannot_be_used_is_refused(tmp_path: Path, spoil: Callable[[Path], None], cause: str) -> None:
    folder = tiny.checkpoint(tmp_path / "base", "llama")
    model = tuned(folder, LoraShape(r=2, targets=("q_proj",)))
    save_adapter(model, tmp_path / "adapter", LoraShape(r=2, targets=("q_proj",)), base="base")
    spoil(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=cause):
        read_adapter(tmp_path / "adapter", checkpoint.load(folder))


def test_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    model = tuned(tiny.checkpoint(tmp_path / "base", "llama"), LoraShape(r=2))
    save_adapter(model, tmp_path / "adapter", LoraShape(r=2), base="base")
    for family, options, cause in (
        ("llama", {"hidden_size": 64}, r"the model's weight is \[64, 48\]"),
        ("llama", {"num_hidden_layers": 1}, r"has no layer layers\.1"),
        ("gpt2", {}, "has no layer"),
    ):
        other = checkpoint.load(tiny.checkpoint(tmp_path / family / str(options), family, **options))
        with pytest.raises(CheckpointError, match=cause):
            read_adapter(tmp_path / "adapter", other)
