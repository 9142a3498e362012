"""Folders in and out: the same weights both ways, whatever files they lie in, and no copy where none is needed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

import tiny
from trefoil_models import checkpoint, families
from trefoil_models.attend import packed_rows
from trefoil_models.checkpoint import Model
from trefoil_models.config_keys import CheckpointError
from trefoil_models.model_folder import read_json

SEQUENCES = tiny.draw_ids(9, 1, 17)
families_ = pytest.mark.parametrize("family", tiny.FAMILIES)
known_ = pytest.mark.parametrize("family", tiny.TRANSFORMERS)


def logits(model: Model) -> Tensor:
    rows, attend = packed_rows(SEQUENCES)
    with torch.no_grad():
        return model.lm_head.logits(model(rows, attend))


def their_logits(folder: Path) -> Tensor:
    oracle = tiny.oracle(folder)
    return torch.cat([tiny.oracle_logits(oracle, ids) for ids in SEQUENCES])


def assert_near(one: Tensor, other: Tensor) -> None:
    assert (one - other).abs().max() < 1e-4


def lies_in_file(tensor: Tensor, name: str) -> bool:
    """Is the tensor's memory a mapping of a file of this name?"""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split(maxsplit=1)[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return line.endswith(name)
    return False


@known_
def test_saved_folders_load_into_transformers(family: str, tmp_path: Path) -> None:
    model = checkpoint.load(tiny.checkpoint(tmp_path / "a", family))
    checkpoint.save(model, tmp_path / "b", read_json(tmp_path / "a" / "config.json"))
    assert_near(their_logits(tmp_path / "b"), logits(model))
    assert torch.equal(logits(checkpoint.load(tmp_path / "b")), logits(model))


@families_
def test_save_writes_the_published_tensor_names(family: str, tmp_path: Path) -> None:
    model = checkpoint.load(tiny.checkpoint(tmp_path / "a", family))
    checkpoint.save(model, tmp_path / "b", read_json(tmp_path / "a" / "config.json"))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_own_head_survives_a_config_that_ties(family: str, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "a", family, tie_word_embeddings=False)
    wanted = logits(checkpoint.load(folder))
    model = checkpoint.load(tiny.edit_config(folder, lambda config: config.update(tie_word_embeddings=True)))
    assert torch.equal(logits(model), wanted)
    checkpoint.save(model, tmp_path / "b", read_json(folder / "config.json"))
    assert_near(their_logits(tmp_path / "b"), wanted)


def test_saved_dtype_is_the_weights_own(tmp_path: Path) -> None:
    model = checkpoint.load(tiny.checkpoint(tmp_path / "a", "llama"), dtype=torch.bfloat16)
    checkpoint.save(model, tmp_path / "b", read_json(tmp_path / "a" / "config.json"))  # says dtype: float32
    assert checkpoint.inspect(tmp_path / "b").folder.dtype_name == "bfloat16"
    assert {x.dtype for x in load_file(tmp_path / "b" / "model.safetensors").values()} == {torch.bfloat16}


def test_save_leaves_no_half_files_and_replaces_whole_ones(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "a", "llama")
    model, config = checkpoint.load(folder), read_json(folder / "config.json")
    wanted = logits(model)
    checkpoint.save(checkpoint.build(config, seed=1), folder, config)
    assert torch.equal(logits(model), wanted)  # the mapped old file lives on under its weights
    assert not list(folder.glob(".*"))


@families_
def test_build_is_decided_by_the_seed(family: str, tmp_path: Path) -> None:
    config = read_json(tiny.checkpoint(tmp_path, family) / "config.json")
    one, same, other = (logits(checkpoint.build(config, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@known_
def test_built_models_save_and_load_into_transformers(family: str, tmp_path: Path) -> None:
    config = read_json(tiny.checkpoint(tmp_path / "a", family) / "config.json")
    model = checkpoint.build({**config, "initializer_range": 0.2}, seed=3, dtype=torch.float32)
    checkpoint.save(model, tmp_path / "b", config)
    assert_near(their_logits(tmp_path / "b"), logits(model))


def test_build_draws_the_width_the_config_asks_for(tmp_path: Path) -> None:
    config = read_json(tiny.checkpoint(tmp_path, "qwen2") / "config.json")
    model = checkpoint.build({**config, "initializer_range": 0.3}, seed=0, dtype=torch.bfloat16)
    weights = dict(model.named_parameters())
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert all(w.requires_grad for w in weights.values())
    assert 0.28 < weights["embed_tokens.weight"].float().std() < 0.32
    assert not weights["layers.0.self_attn.q_proj.bias"].any()
    assert (weights["norm.weight"] == 1).all()


@known_
def test_sharded_safetensors_load(family: str, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "a", family)
    tiny.oracle(folder).save_pretrained(tmp_path / "b", max_shard_size="20KB")
    assert len(list((tmp_path / "b").glob("model-*.safetensors"))) > 2
    assert_same_weights(checkpoint.load(tmp_path / "b"), checkpoint.load(folder))


def assert_same_weights(model: checkpoint.Model, other: checkpoint.Model) -> None:
    """Not the logits: where a weight begins in memory may change the last bit of torch's products."""
    own, wanted = model.state_dict(keep_vars=True), other.state_dict(keep_vars=True)
    assert own.keys() == wanted.keys()
    assert all(torch.equal(own[name], wanted[name]) for name in wanted)


def to_bin(folder: Path, num_shards: int = 1) -> Path:
    """Rewrite a folder's safetensors file as pytorch_model.bin, or as shards of it with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if num_shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder
    weight_map = {name: f"pytorch_model-{i % num_shards}.bin" for i, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        torch.save({name: x for name, x in tensors.items() if weight_map[name] == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@families_
@pytest.mark.parametrize("num_shards", [1, 3])
def test_bin_files_load(family: str, num_shards: int, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, family)
    wanted = checkpoint.load(folder)
    assert_same_weights(checkpoint.load(to_bin(folder, num_shards)), wanted)


def test_old_bin_files_and_aliased_tensors_load(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "gpt2")
    wanted, tensors = logits(checkpoint.load(folder)), load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(logits(checkpoint.load(folder)), wanted)


def test_safetensors_win_over_bin(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "llama")
    torch.save({"junk": torch.ones(1)}, folder / "pytorch_model.bin")
    assert_near(logits(checkpoint.load(folder)), their_logits(folder))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_base_model_saves_load_where_the_head_is_tied(family: str, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "a", family, tie_word_embeddings=True)
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "b")
    assert torch.equal(logits(checkpoint.load(tmp_path / "b")), logits(checkpoint.load(folder)))


def test_stray_buffers_and_other_heads_change_nothing(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "llama")
    wanted, tensors = logits(checkpoint.load(folder)), load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["score.weight"] = torch.ones(3, 32)
    save_file(tensors, folder / "new", metadata={"format": "pt"})
    (folder / "new").replace(folder / "model.safetensors")
    assert torch.equal(logits(checkpoint.load(folder)), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_weight_comes_in_the_dtype_asked_for(dtype: torch.dtype, tmp_path: Path) -> None:
    model = checkpoint.load(tiny.checkpoint(tmp_path, "qwen3"), dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_weights_of_the_same_dtype_are_the_mapped_file(tmp_path: Path) -> None:
    model = checkpoint.load(tiny.checkpoint(tmp_path, "llama"))
    assert all(lies_in_file(parameter, "model.safetensors") for parameter in model.parameters())


def test_weights_of_a_bin_file_are_mapped_too(tmp_path: Path) -> None:
    model = checkpoint.load(to_bin(tiny.checkpoint(tmp_path, "llama")))
    assert all(lies_in_file(parameter, "pytorch_model.bin") for parameter in model.parameters())


def test_changing_loaded_weights_never_reaches_the_file(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "llama")
    before = (folder / "model.safetensors").read_bytes()
    model = checkpoint.load(folder)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert (folder / "model.safetensors").read_bytes() == before


@families_
def test_tied_weights_are_one_parameter(family: str, tmp_path: Path) -> None:
    model = checkpoint.load(tiny.checkpoint(tmp_path, family, tie_word_embeddings=True))
    names = [name for name, _ in model.named_parameters()]
    assert "lm_head.weight" not in names
    assert model.lm_head.weight in {p for p in model.parameters() if p is model.lm_head.weight}


def test_an_import_error_in_a_family_is_not_called_an_unknown_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module_here\n")
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="no_such_module_here"):
        checkpoint.build({"model_type": "broken"}, seed=0)


def test_known_families_are_the_files() -> None:
    assert {family.replace("-", "_") for family in tiny.FAMILIES} <= set(checkpoint.known_families())


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64], ids=str)
def test_whole_numbers_are_no_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(32, dtype=dtype)
    save_file(tensors, folder / "new", metadata={"format": "pt"})
    (folder / "new").replace(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has dtype"):
        checkpoint.load(folder)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight .* NaN"):
        checkpoint.load(folder)


def test_internlm_answers_nothing_longer_than_it_was_trained_for(tmp_path: Path) -> None:
    """Beyond that its keys turn anew with each token, which pages do not."""
    folder = tiny.checkpoint(tmp_path, "internlm")
    tiny.edit_config(folder, lambda config: config["rotary"].update(scaling_factor=4.0))
    assert checkpoint.inspect(folder).model.config.longest == 256
