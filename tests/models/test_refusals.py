"""A folder that cannot be served is refused with a CheckpointError of one line that names the culprit."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import tiny
from trefoil_models import checkpoint
from trefoil_models.config_keys import CheckpointError, Keys
from trefoil_models.families import gpt2, llama, mistral, qwen2, qwen3
from trefoil_models.rotary_scaling import Rotary

READERS = {"gpt2": gpt2, "llama": llama, "mistral": mistral, "qwen2": qwen2, "qwen3": qwen3}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
OPTIONAL_SIZES = ("num_key_value_heads", "head_dim", "max_position_embeddings")
FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias")
BAD_SIZES = ["abc", True, -1, 0, 1.5, [32], {}, 10**30]


def refusal(folder: Path) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_config(folder: Path, family: str = "llama", /, **changes: Any) -> Path:
    return tiny.edit_config(tiny.checkpoint(folder, family), lambda config: config.update(changes))


def with_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], family: str = "llama") -> Path:
    """A checkpoint whose tensors `change` has edited."""
    tiny.checkpoint(folder, family)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "new", metadata={"format": "pt"})
    (folder / "new").replace(folder / "model.safetensors")
    return folder


def sharded(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A sharded checkpoint and its index."""
    tiny.oracle(tiny.checkpoint(folder / "whole", "llama")).save_pretrained(folder / "parts", max_shard_size="20KB")
    return folder / "parts", json.loads((folder / "parts" / "model.safetensors.index.json").read_text())


@pytest.mark.parametrize("key", SIZES + OPTIONAL_SIZES)
@pytest.mark.parametrize("value", BAD_SIZES, ids=str)
def test_a_bad_size_is_named(key: str, value: object, tmp_path: Path) -> None:
    assert f"config.json: {key} = " in refusal(with_config(tmp_path, **{key: value}))


@pytest.mark.parametrize("key", SIZES)
def test_a_missing_size_is_named(key: str, tmp_path: Path) -> None:
    assert refusal(with_config(tmp_path, **{key: None})) == f"config.json: {key} is missing"


@pytest.mark.parametrize("key", FLAGS)
@pytest.mark.parametrize("value", ["true", 1, []], ids=str)
def test_a_bad_flag_is_named(key: str, value: object, tmp_path: Path) -> None:
    assert f"config.json: {key} = {value!r} must be true or false" in refusal(with_config(tmp_path, **{key: value}))


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish'"),
        ({"hidden_act": 3}, "hidden_act"),
        ({"model_type": "mamba"}, "model_type = 'mamba'"),
        ({"model_type": "../llama"}, "model_type"),
        ({"model_type": None}, "model_type is missing"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"num_attention_heads": 3, "head_dim": None, "num_key_value_heads": 3}, "num_attention_heads 3"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"hidden_size": 2**31 - 1, "intermediate_size": 2**31 - 1}, "config.json"),
        ({"head_dim": 7}, "width must be even"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"logit_scale": 0.5}, "logit_scale"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters.rope_type = 'longrope'"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, "rope_scaling.rope_type = 'su'"),
        ({"rope_scaling": {"type": "mrope"}}, "rope_scaling.rope_type = 'mrope'"),
        ({"rope_scaling": "yarn"}, "rope_scaling = 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "sections": [1]}}, "rope_scaling.sections"),
        ({"rope_scaling": {"type": "llama3", "factor": 2.0}}, "rope_scaling.low_freq_factor is missing"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters.full_attention"),
    ],
    ids=str,
)
def test_what_llama_cannot_compute_is_named(changes: dict[str, Any], culprit: str, tmp_path: Path) -> None:
    assert culprit in refusal(with_config(tmp_path, **changes))


@pytest.mark.parametrize(
    ("family", "changes", "culprit"),
    [
        ("gpt2", {"n_head": 3}, "n_head 3"),
        ("gpt2", {"n_inner": 0}, "n_inner"),
        ("gpt2", {"activation_function": "mish"}, "activation_function"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt2", {"scale_attn_weights": "no"}, "scale_attn_weights"),
        ("gpt_neo", {"num_heads": 3}, "num_heads 3"),
        ("gpt_neo", {"attention_types": [[["global", "local"], 2]]}, "attention_types"),
        ("gpt_neo", {"attention_types": [[["global", "near"], 1]]}, "attention_types"),
        ("gpt_neo", {"attention_types": "local"}, "attention_types"),
        ("gpt3", {"attention_layers": ["local"]}, "attention_layers"),
        ("openai-gpt", {"afn": "gelu_new"}, "afn = 'gelu_new'"),
        ("glm", {"rope_parameters": {"partial_rotary_factor": 2.0}}, "rope_parameters.partial_rotary_factor = 2.0"),
        ("glm", {"rope_parameters": {}, "partial_rotary_factor": -0.5}, "partial_rotary_factor = -0.5"),
        ("qwen", {"rotary_pct": 2.0}, "rotary_pct = 2.0"),
        ("qwen", {"kv_channels": 128}, "kv_channels 128"),
        ("qwen", {"seq_length": 1}, "seq_length = 1"),
        ("qwen", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ("baichuan", {"max_position_embeddings": None}, "model_max_length is missing"),
        ("mistral", {"sliding_window": 0}, "sliding_window"),
        ("mistral", {"sliding_window": "wide"}, "sliding_window"),
        ("qwen2", {"use_sliding_window": 1}, "use_sliding_window"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "no sliding_window is set"),
        ("deepseek_v2", {"n_group": 3}, "n_group 3"),
        ("deepseek_v3", {"topk_group": 5}, "topk_group 5"),
        ("deepseek_v3", {"n_group": 8}, "groups of 2 or more"),
        ("mixtral", {"num_experts_per_tok": 5}, "num_experts_per_tok 5"),
        ("qwen3", {"layer_types": "full_attention"}, "layer_types"),
        ("qwen3", {"head_dim": 16}, "q_proj.weight has shape [32, 32]"),
    ],
    ids=str,
)
def test_what_a_family_cannot_compute_is_named(
    family: str, changes: dict[str, Any], culprit: str, tmp_path: Path
) -> None:
    assert culprit in refusal(with_config(tmp_path, family, **changes))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    (tiny.checkpoint(tmp_path, "llama") / "config.json").unlink()
    assert "config.json is missing" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{'a': 1}", "\xff", "[" * 100_000], ids=lambda text: text[:9])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_broken_json_is_named(name: str, text: str, tmp_path: Path) -> None:
    (tiny.checkpoint(tmp_path, "llama") / name).write_bytes(text.encode("latin-1"))
    assert name in refusal(tmp_path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    (tiny.checkpoint(tmp_path, "llama") / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(tmp_path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    assert f"{name} is missing (1 " in refusal(with_tensors(tmp_path, lambda tensors: tensors.pop(name)))


def test_a_missing_head_is_named(tmp_path: Path) -> None:
    assert "lm_head.weight is missing" in refusal(with_tensors(tmp_path, lambda x: x.pop("lm_head.weight")))


OBLONG = dict.fromkeys(("gpt2", "gpt_neo", "openai-gpt"), "transformer.h.0.mlp.c_fc.weight") | dict.fromkeys(
    ("deepseek_v2", "deepseek_v3"), "model.layers.0.self_attn.kv_b_proj.weight"
)


@pytest.mark.parametrize("family", tiny.TRANSFORMERS)
def test_a_wrong_shape_is_named(family: str, tmp_path: Path) -> None:
    name = OBLONG.get(family, "model.layers.0.self_attn.k_proj.weight")
    line = refusal(with_tensors(tmp_path, lambda x: x.update({name: x[name].T.contiguous()}), family))
    assert line.startswith(f"tensor {name} has shape [")


def test_a_wrong_head_shape_is_named(tmp_path: Path) -> None:
    line = refusal(with_tensors(tmp_path, lambda x: x.update({"lm_head.weight": torch.ones(319, 32)})))
    assert line == "tensor lm_head.weight has shape [319, 32], config.json asks for [320, 32]"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-100],
        lambda data: data[: len(data) // 2],
        lambda data: data[:5],
        lambda data: b"",
        lambda data: b"\xff" * 64 + data,
        lambda data: data[:8] + b"{" * 40 + data[48:],
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    ],
    ids=["end", "half", "five bytes", "empty", "huge header", "garbage header", "pointer of git-lfs"],
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_damaged_weight_file_is_named(name: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tiny.checkpoint(tmp_path, "llama") / "model.safetensors"
    if name == "pytorch_model.bin":
        torch.save(load_file(path), tmp_path / name)
        path.unlink()
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    assert name in refusal(tmp_path)


class Bomb:
    """Pickled, it asks the reader to make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_pickled_code_does_not_run(is_zip: bool, tmp_path: Path) -> None:
    (tiny.checkpoint(tmp_path, "llama") / "model.safetensors").unlink()
    bomb = {"model.norm.weight": Bomb(tmp_path / "pwned")}
    torch.save(bomb, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    assert "pytorch_model.bin" in refusal(tmp_path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [[1], torch.ones(3), "weights"], ids=["list", "tensor", "text"])
def test_a_bin_file_of_something_else_is_named(content: object, tmp_path: Path) -> None:
    (tiny.checkpoint(tmp_path, "llama") / "model.safetensors").unlink()
    torch.save(content, tmp_path / "pytorch_model.bin")
    assert "pytorch_model.bin holds no dictionary" in refusal(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder, _ = sharded(tmp_path)
    shard = next(folder.glob("model-00002-*"))
    shard.unlink()
    assert f"{shard.name} is missing" in refusal(folder)


@pytest.mark.parametrize("elsewhere", ["../whole/model.safetensors", "/etc/passwd", "..", "sub/model.safetensors", ""])
def test_an_index_may_not_name_files_outside_the_folder(elsewhere: str, tmp_path: Path) -> None:
    folder, index = sharded(tmp_path)
    index["weight_map"]["model.norm.weight"] = elsewhere
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    line = refusal(folder)
    assert "names a file outside the folder" in line
    assert repr(elsewhere) in line


def test_a_shard_without_its_tensor_is_named(tmp_path: Path) -> None:
    folder, index = sharded(tmp_path)
    index["weight_map"]["model.ghost.weight"] = index["weight_map"]["model.norm.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks the tensor model.ghost.weight" in refusal(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": None}], ids=str)
def test_an_index_without_a_map_is_named(index: dict[str, Any], tmp_path: Path) -> None:
    folder, _ = sharded(tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.safetensors.index.json has no weight_map" in refusal(folder)


SCALAR = st.none() | st.booleans() | st.integers() | st.integers(0, 64) | st.floats() | st.text(max_size=5)
JUNK = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
ROPE_NUMBERS = ("factor", "rope_theta", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate")
ROPE_NUMBERS += ("low_freq_factor", "high_freq_factor", "attention_factor", "mscale", "mscale_all_dim")
ROPE = st.fixed_dictionaries(
    {},
    optional={
        "rope_type": st.sampled_from(["default", "linear", "dynamic", "yarn", "llama3"]) | SCALAR,
        "type": st.sampled_from(["linear", "yarn"]) | SCALAR,
        **dict.fromkeys(ROPE_NUMBERS, st.floats(-2, 64) | st.integers(-1, 64) | SCALAR),
    },
)
KEYS = [*SIZES, *OPTIONAL_SIZES, *FLAGS, *tiny.GPT2, "n_inner", "sliding_window", "layer_types", "max_window_layers"]
KEYS += ["use_sliding_window", "hidden_act", "rms_norm_eps", "partial_rotary_factor", "layer_norm_epsilon"]
CHANGES = st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=2)


def verdict(family: str, config: dict[str, Any]) -> str:
    """The refusal's line, or nothing where the config can be read and its rotary table be made."""
    try:
        read = READERS[family].read_config(Keys(config))
    except CheckpointError as error:
        return str(error)
    if family != "gpt2" and read.head_dim <= 4096:
        Rotary(read.scaling)
    return "" if read.longest > 0 else "no positions at all"


@settings(max_examples=200, deadline=None, database=None)
@given(changes=CHANGES, rope=ROPE)
@pytest.mark.parametrize("family", READERS)
def test_no_config_is_worse_than_refused(family: str, changes: dict[str, Any], rope: dict[str, Any]) -> None:
    for config in ({**tiny.DENSE, **tiny.GPT2, **changes}, {**tiny.DENSE, "rope_parameters": rope}):
        assert "\n" not in verdict(family, config)
        assert "no positions" not in verdict(family, config)
