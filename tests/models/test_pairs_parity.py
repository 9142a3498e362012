"""Every encoder-decoder gives transformers' encoder states and logits, many ragged pairs in one pass."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
import tiny_pairs
from trefoil_models import checkpoint
from trefoil_models.attend import packed_pairs
from trefoil_models.config_keys import CheckpointError

SOURCES, TARGETS = tiny.draw_ids(33, 1, 90, 7), tiny.draw_ids(5, 40, 1, 61, seed=1)
HUB_BUCKETS = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}


@dataclass(frozen=True)
class Case:
    """A family, the config it is built with, and what is then changed in config.json alone."""

    family: str
    config: dict[str, Any] = field(default_factory=dict)
    edit: Callable[[dict[str, Any]], object] = lambda config: None


CASES = {
    "t5": Case("t5"),
    "t5 hub buckets": Case("t5", HUB_BUCKETS),
    "t5 v1.1": Case("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "t5 gated silu": Case("t5", {"feed_forward_proj": "gated-silu"}),
    "t5 deeper decoder": Case("t5", {"num_decoder_layers": 3}),
    "t5 shallow decoder": Case("t5", {"num_decoder_layers": 1}),
    "t5 eps": Case("t5", {"layer_norm_epsilon": 0.01}),
    "t5 unscaled in older words": Case(
        "t5",
        {"tie_word_embeddings": False},
        lambda c: (c.pop("scale_decoder_outputs"), c.update(tie_word_embeddings=True)),
    ),
    "mt5": Case("mt5"),
    "mt5 hub buckets": Case("mt5", HUB_BUCKETS),
    "bart": Case("bart"),
    "bart scaled embedding": Case("bart", {"scale_embedding": True}),
    "bart relu": Case("bart", {"activation_function": "relu"}),
    "bart deeper decoder": Case("bart", {"decoder_layers": 3}),
    "mbart": Case("mbart"),
    "mbart scaled embedding": Case("mbart", {"scale_embedding": True}),
}


def our_answers(folder: Path, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """States and logits of all pairs in one packed pass of each side."""
    model, pairs = checkpoint.load(folder, dtype=dtype), packed_pairs(SOURCES, TARGETS)
    with torch.no_grad():
        states_TM = model.encode(pairs.encoder_rows, pairs.here, pairs.there)
        return states_TM, model.lm_head.logits(model(pairs.rows, pairs.there))


def assert_parity(folder: Path) -> None:
    wanted = tiny_pairs.oracle_answers(tiny_pairs.oracle(folder), SOURCES, TARGETS)
    for ours, theirs in zip(our_answers(folder), wanted, strict=True):
        assert (ours - theirs).abs().max() < 1e-4  # NaN fails too


@pytest.mark.parametrize("name", CASES)
def test_states_and_logits_match_transformers(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    assert_parity(tiny.edit_config(tiny_pairs.checkpoint(tmp_path, case.family, **case.config), case.edit))


CHANGES_THAT_SHOW = {
    "output scale": Case("t5", edit=lambda c: c.update(scale_decoder_outputs=False)),
    "largest distance": Case("t5", edit=lambda c: c.update(relative_attention_max_distance=15)),
    "t5's gelu": Case("t5", {"feed_forward_proj": "gated-gelu"}, lambda c: c.update(feed_forward_proj="gated-relu")),
    "bart's embedding": Case("bart", edit=lambda c: c.update(scale_embedding=True)),
}


@pytest.mark.parametrize("name", CHANGES_THAT_SHOW)
def test_a_mistake_would_show(name: str, tmp_path: Path) -> None:
    case = CHANGES_THAT_SHOW[name]
    folder = tiny_pairs.checkpoint(tmp_path, case.family, **case.config)
    _, right = our_answers(folder)
    tiny.edit_config(folder, case.edit)
    assert (our_answers(folder)[1] - right).abs().max() > 1e-2


@pytest.mark.parametrize("family", tiny_pairs.FAMILIES)
def test_what_we_save_transformers_reads_back(family: str, tmp_path: Path) -> None:
    folder = tiny_pairs.checkpoint(tmp_path / "theirs", family)
    checkpoint.save(checkpoint.load(folder), tmp_path / "ours", dict(checkpoint.inspect(folder).folder.config.values))
    _, wanted = our_answers(folder)
    _, theirs = tiny_pairs.oracle_answers(tiny_pairs.oracle(tmp_path / "ours"), SOURCES, TARGETS)
    assert (wanted - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_older_files_hold_the_embedding_several_times(family: str, tmp_path: Path) -> None:
    folder = tiny_pairs.checkpoint(tmp_path, family)
    shared = "model.shared.weight" if family == "bart" else "shared.weight"
    rewrite(folder, lambda tensors: tensors.update({n: tensors[shared].clone() for n in copies(shared)}))
    assert_parity(folder)


def test_a_file_may_call_the_embedding_by_one_sides_name(tmp_path: Path) -> None:
    folder = tiny_pairs.checkpoint(tmp_path, "t5")
    wanted = our_answers(folder)
    rewrite(folder, lambda tensors: tensors.update({"decoder.embed_tokens.weight": tensors.pop("shared.weight")}))
    assert torch.equal(our_answers(folder)[1], wanted[1])


def test_a_bare_bart_has_no_prefix_and_no_bias(tmp_path: Path) -> None:
    folder = tiny_pairs.checkpoint(tmp_path, "bart")
    rewrite(folder, lambda tensors: tensors["final_logits_bias"].zero_())
    wanted = our_answers(folder)
    rewrite(folder, strip_prefix)
    assert torch.equal(our_answers(folder)[1], wanted[1])


def copies(shared: str) -> list[str]:
    return [shared.replace("shared", f"{side}.embed_tokens") for side in ("encoder", "decoder")] + ["lm_head.weight"]


def strip_prefix(tensors: dict[str, Tensor]) -> None:
    del tensors["final_logits_bias"]
    for name in list(tensors):
        tensors[name.removeprefix("model.")] = tensors.pop(name)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Let `change` edit a folder's tensors."""
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", tiny_pairs.FAMILIES)
def test_bf16_stays_near(family: str, tmp_path: Path) -> None:
    folder = tiny_pairs.checkpoint(tmp_path, family, std=0.1)
    (_, logits), (_, wanted) = our_answers(folder, dtype=torch.bfloat16), our_answers(folder)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - wanted).norm() / wanted.norm() < 0.06


def test_float16_keeps_the_way_back_in_float32(tmp_path: Path) -> None:
    """Feed-forward sums beyond float16's 65504 do not become infinite."""
    folder = tiny_pairs.checkpoint(tmp_path, "t5")
    rewrite(folder, lambda tensors: [t.mul_(300) for n, t in tensors.items() if n.endswith(("wi.weight", "wo.weight"))])
    model = checkpoint.load(folder, dtype=torch.float16)
    dtypes = {name: weight.dtype for name, weight in model.named_parameters()}
    assert {n for n, d in dtypes.items() if d == torch.float32} == {n for n in dtypes if n.endswith("wo.weight")}
    (states, logits), (wanted_states, wanted) = our_answers(folder, dtype=torch.float16), our_answers(folder)
    assert (states.float() - wanted_states).norm() / wanted_states.norm() < 0.01
    assert (logits.float() - wanted).norm() / wanted.norm() < 0.01


def test_gradients_reach_every_parameter(tmp_path: Path) -> None:
    for family in tiny_pairs.FAMILIES:
        model, pairs = checkpoint.load(tiny_pairs.checkpoint(tmp_path / family, family)), packed_pairs(SOURCES, TARGETS)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        model.encode(pairs.encoder_rows, pairs.here, pairs.there)
        model.lm_head.logprobs(model(pairs.rows, pairs.there), pairs.rows.ids_T).sum().backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()] == []


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("t5", {"feed_forward_proj": "gated-sine"}, "feed_forward_proj"),
        ("t5", {"relative_attention_num_buckets": 7}, "relative_attention_num_buckets"),
        ("t5", {"d_model": 33}, "shape"),
        ("bart", {"decoder_attention_heads": 5}, "decoder_attention_heads"),
    ],
    ids=str,
)
def test_refuses_by_name(family: str, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = tiny.edit_config(tiny_pairs.checkpoint(tmp_path, family), lambda c: c.update(change))
    with pytest.raises(CheckpointError, match=said):
        checkpoint.inspect(folder)
