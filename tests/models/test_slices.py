"""A model in slices gives the whole model's logits; what cannot be sliced is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import published_models
import tiny
import tiny_encoders
from threaded_ranks import Threads, on_ranks
from trefoil_models import checkpoint
from trefoil_models.attend import packed_rows
from trefoil_models.checkpoint import CheckpointError
from trefoil_models.heads import NormHead
from trefoil_models.packing import pack
from trefoil_models.slices import Share, rank_config

IDS = tiny.draw_ids(23, vocab=96)[0]
BIASED = {"attention_bias": True, "mlp_bias": True}
VARIANTS: dict[str, dict[str, Any]] = {"internlm3": BIASED, "deepseek_v2": {"q_lora_rank": None}}


def joined(folder: Path, ranks: Threads) -> checkpoint.Model:
    """A rank's model, laid out."""
    blueprint = checkpoint.inspect(folder, ranks.share)
    model = blueprint.load(dtype=torch.float32)
    pack(model)
    assert blueprint.slices is not None
    blueprint.slices.join(model, ranks)
    return model


def logits(folder: Path, ranks: Threads) -> Tensor:
    """Of one rank, which are all ranks'."""
    model = joined(folder, ranks)
    return model.lm_head.logits(model(*packed_rows([IDS])))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_two_ranks_give_the_published_logits(family: str, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, family, **VARIANTS.get(family, {}))
    first, second = on_ranks(2, lambda ranks: logits(folder, ranks))
    assert torch.equal(first, second)
    assert (first - tiny.oracle_logits(tiny.oracle(folder), IDS)).abs().max() < 1e-4


def test_chatglm_6b_and_baichuan_2_give_the_whole_models_logits(tmp_path: Path) -> None:
    glm = published_models.read("chatglm-6b").write(tmp_path / "glm")
    baichuan = tiny.checkpoint(tmp_path / "baichuan", "baichuan")
    tiny.edit_config(baichuan, lambda config: config.update(z_loss_weight=0))  # which only Baichuan 2 has
    assert type(checkpoint.load(baichuan).lm_head) is NormHead
    for folder in (glm, baichuan):
        whole = checkpoint.load(folder)
        given = on_ranks(2, lambda ranks, folder=folder: logits(folder, ranks))
        wanted = whole.lm_head.logits(whole(*packed_rows([IDS])))
        assert max(float((one - wanted).abs().max()) for one in given) < 1e-5


@pytest.mark.parametrize("vocab_size", [320, 319], ids=["sliced-head", "whole-head"])
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_more_ranks_than_kv_heads_share_them(tmp_path: Path, vocab_size: int, is_tied: bool) -> None:
    folder = tiny.checkpoint(
        tmp_path, "qwen3", vocab_size=vocab_size, tie_word_embeddings=is_tied, num_key_value_heads=2
    )
    whole = checkpoint.load(folder)
    given = on_ranks(4, lambda ranks: logits(folder, ranks))
    wanted = whole.lm_head.logits(whole(*packed_rows([IDS])))
    assert max(float((one - wanted).abs().max()) for one in given) < 1e-5


def test_a_rank_holds_its_slices_and_no_more(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "llama")
    model = checkpoint.inspect(folder, Share(1, 2)).load(dtype=torch.float32)
    whole = checkpoint.load(folder)
    layer, other = model.get_submodule("layers.0"), whole.get_submodule("layers.0")
    assert torch.equal(layer.self_attn.q_proj.weight, other.self_attn.q_proj.weight[16:])
    assert torch.equal(layer.self_attn.o_proj.weight, other.self_attn.o_proj.weight[:, 16:])
    assert torch.equal(model.lm_head.weight, whole.lm_head.weight[160:])
    assert [site.kv_heads for site in model.sites] == [1, 1]
    assert layer.mlp.down_proj.weight.untyped_storage().nbytes() == 32 * 24 * 4


@pytest.mark.parametrize(
    ("family", "ranks", "why"),
    [
        ("llama", 3, "--tensor-parallel-size 3: num_attention_heads 4 is no multiple of it; allowed here: 1, 2, 4"),
        ("internlm2", 4, "num_key_value_heads 2 is no multiple of it; allowed here: 1, 2"),
        ("mixtral", 5, "allowed here: 1, 2, 4"),
    ],
)
def test_ranks_that_do_not_divide_a_model_are_refused(family: str, ranks: int, why: str, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, family)
    with pytest.raises(CheckpointError, match=why):
        checkpoint.inspect(folder, Share(0, ranks))


def test_a_bias_by_distance_is_refused(tmp_path: Path) -> None:
    folder = published_models.read("baichuan-13b").write(tmp_path)
    with pytest.raises(CheckpointError, match="2: a bias by distance is not sliced; allowed here: 1"):
        checkpoint.inspect(folder, Share(0, 2))


def test_a_family_that_does_not_say_how_is_refused() -> None:
    with pytest.raises(
        CheckpointError, match="--tensor-parallel-size 2: the family new is not sliced; allowed here: 1"
    ):
        rank_config("new", object(), 2)


@pytest.mark.parametrize("family", tiny_encoders.NAMES)
def test_two_ranks_of_an_encoder_give_the_published_scores(family: str, tmp_path: Path) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, family, "ForMaskedLM")

    def scores(ranks: Threads) -> Tensor:
        model = joined(folder, ranks)
        return model.heads["mask"](model(*packed_rows([IDS])))

    first, second = on_ranks(2, scores)
    with torch.no_grad():
        wanted = tiny_encoders.oracle(folder)(torch.tensor([IDS])).logits[0]
    assert torch.equal(first, second)
    assert (first - wanted).abs().max() < 1e-4
