"""A model answers the same with its weights laid out for the CPU, and nearly so in fewer bits, whatever its family."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from trefoil_kernels.linear import following
from trefoil_kernels.low_bit import has_int4
from trefoil_models import checkpoint
from trefoil_models.attend import packed_rows
from trefoil_models.layers import PackedLinear
from trefoil_models.packing import PackedNextToken, lay_together, pack

SIMILAR = {None: 1 - 1e-6, "int8": 0.99, "fp8": 0.98, "int4": 0.9}
"""Least cosine of a row's logits before and after, with weights drawn at random."""
ALL_CHOSEN: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"num_experts_per_tok": 8, "topk_group": 4, "std": 0.1},
    "mixtral": {"num_experts_per_tok": 4},
}
"""Every expert of every row: a choice between two drawn at random may fall otherwise after any rounding."""


@pytest.mark.parametrize("quantization", SIMILAR, ids=str)
@pytest.mark.parametrize("family", ["deepseek_v3", "gpt2", "llama", "mixtral", "qwen2"])
@torch.no_grad()
def test_logits_stay_close(family: str, quantization: str | None, tmp_path: Path) -> None:
    if quantization == "int4" and not has_int4():
        pytest.skip("4-bit weights need AVX-512 VNNI")
    folder = tiny.checkpoint(tmp_path / "m", family, **ALL_CHOSEN.get(family, {}))
    model = checkpoint.load(folder, dtype=torch.float32)
    rows, attend = packed_rows(tiny.draw_ids(5, 17))
    before = model.lm_head.logits(model(rows, attend))
    pack(model, quantization)
    after = model.lm_head.logits(model(rows, attend))
    assert isinstance(model.lm_head, PackedNextToken)
    assert any(isinstance(module, PackedLinear) for module in model.modules())
    assert torch.cosine_similarity(before, after).min() > SIMILAR[quantization]


def test_the_embedding_is_kept_whole(tmp_path: Path) -> None:
    model = checkpoint.load(tiny.checkpoint(tmp_path / "m", "llama", tie_word_embeddings=True), dtype=torch.float32)
    whole = model.embed_tokens.weight.clone()
    pack(model, "int8")
    assert torch.equal(model.embed_tokens.weight, whole)


@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen2", "bert"])
@torch.no_grad()
def test_weights_that_meet_the_same_rows_follow_each_other(family: str, tmp_path: Path) -> None:
    model = checkpoint.load(tiny.checkpoint(tmp_path / "m", family), dtype=torch.float32)
    rows, attend = packed_rows(tiny.draw_ids(5, 17))
    before = model(rows, attend)
    lay_together(model)
    groups = [
        [getattr(module, name) for name in module.reads_together]
        for module in model.modules()
        if hasattr(module, "reads_together")
    ]
    assert groups
    assert all(following([layer.weight for layer in layers]) is not None for layers in groups)
    assert torch.allclose(model(rows, attend), before, atol=1e-5)
