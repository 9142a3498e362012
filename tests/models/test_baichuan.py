"""Which of Baichuan's four architectures a folder holds, and the head of the second generation."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import published_models
from trefoil_models import checkpoint
from trefoil_models.attend import packed_rows
from trefoil_models.config_keys import Keys
from trefoil_models.families import baichuan
from trefoil_models.packing import pack

ROTARY, ALIBI = {"max_position_embeddings": 4096, "model_max_length": 4096}, {"model_max_length": 4096}
FIRST, SECOND = {"architectures": ["BaiChuanForCausalLM"]}, {"architectures": ["BaichuanForCausalLM"]}
IDS = [5, 80, 31, 7, 7, 64]


@pytest.mark.parametrize(
    ("keys", "has_alibi", "has_norm_head"),
    [
        ({**ROTARY, **FIRST, "vocab_size": 64000}, False, False),
        ({**ROTARY, **SECOND, "vocab_size": 64000}, False, False),
        ({**ROTARY, **SECOND, "vocab_size": 125696}, False, True),
        ({**ALIBI, **SECOND, "vocab_size": 64000}, True, False),
        ({**ALIBI, **SECOND, "vocab_size": 125696}, True, True),
        ({**ROTARY, **FIRST, "vocab_size": 96}, False, False),
        ({**ROTARY, **SECOND, "vocab_size": 96}, False, True),
        ({**ALIBI, **SECOND, "vocab_size": 96}, True, False),
        ({**ALIBI, **SECOND, "vocab_size": 96, "z_loss_weight": 0}, True, True),
    ],
    ids=str,
)
def test_config_tells_the_four_apart(keys: dict[str, Any], has_alibi: bool, has_norm_head: bool) -> None:
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 1, "intermediate_size": 64}
    config = baichuan.read_config(Keys({**sizes, **keys}))
    assert (config.has_alibi, config.has_norm_head) == (has_alibi, has_norm_head)
    assert config.longest == 4096


def model(folder: Path) -> checkpoint.Model:
    """Baichuan 2 of 13B's kind, its weights free to learn."""
    found = checkpoint.load(published_models.read("baichuan2-13b").write(folder))
    for parameter in found.parameters():
        parameter.requires_grad_()
    return found


def test_the_second_head_learns_through_its_scaling_and_is_saved_unscaled(tmp_path: Path) -> None:
    ours, labels_R = model(tmp_path / "a"), torch.tensor(IDS[1:])
    hidden_RM = ours(*packed_rows([IDS]))[:-1]
    (-ours.lm_head.logprobs(hidden_RM, labels_R)).sum().backward()
    weight = ours.lm_head.weight.detach().clone().requires_grad_()
    F.cross_entropy(hidden_RM.detach() @ F.normalize(weight).T, labels_R, reduction="sum").backward()
    assert (ours.lm_head.weight.grad - weight.grad).abs().max() < 1e-5
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in ours.parameters())
    checkpoint.save(ours, tmp_path / "b", published_models.read("baichuan2-13b").config)
    assert torch.equal(checkpoint.load(tmp_path / "b").lm_head.weight, weight)


@torch.no_grad()
def test_the_second_head_is_scaled_anew_after_its_weight_changed(tmp_path: Path) -> None:
    ours, hidden_RM = model(tmp_path), torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    before = ours.lm_head.logits(hidden_RM)
    ours.lm_head.weight *= torch.linspace(0.5, 9, 96)[:, None]
    assert (ours.lm_head.logits(hidden_RM) - before).abs().max() < 1e-5
    pack(ours)
    assert (ours.lm_head.logits(hidden_RM) - before).abs().max() < 1e-5
    assert ours.lm_head.logprobs(hidden_RM, torch.tensor([1, 2, 3])).isfinite().all()


def test_slopes_are_those_of_the_release() -> None:
    """40 heads: those of 32, then every second one of 64 heads."""
    slopes_H = baichuan.slopes(40)
    assert slopes_H[[0, 1, 31]].tolist() == pytest.approx([2**-0.25, 2**-0.5, 2**-8])
    assert slopes_H[[32, 33, 39]].tolist() == pytest.approx([2**-0.125, 2**-0.375, 2**-1.875])
