"""A model with 8-bit weights answers nearly as it did, whatever its family; its embedding stays whole."""

from pathlib import Path

import pytest
import torch

import tiny
from trefoil_models import checkpoint
from trefoil_models.attend import packed_rows
from trefoil_models.low_bit import Int8Linear, Int8NextToken, quantise


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
@torch.no_grad()
def test_logits_stay_close(family: str, tmp_path: Path) -> None:
    model = checkpoint.load(tiny.checkpoint(tmp_path / "m", family), dtype=torch.float32)
    rows, attend = packed_rows(tiny.draw_ids(5, 17))
    before = model.lm_head.logits(model(rows, attend))
    quantise(model)
    after = model.lm_head.logits(model(rows, attend))
    assert isinstance(model.lm_head, Int8NextToken)
    assert any(isinstance(module, Int8Linear) for module in model.modules())
    similar_T = torch.cosine_similarity(before, after)
    assert similar_T.min() > 0.99
    assert not torch.equal(before, after)


def test_the_embedding_is_kept_whole(tmp_path: Path) -> None:
    model = checkpoint.load(tiny.checkpoint(tmp_path / "m", "llama", tie_word_embeddings=True), dtype=torch.float32)
    whole = model.embed_tokens.weight.clone()
    quantise(model)
    assert torch.equal(model.embed_tokens.weight, whole)
