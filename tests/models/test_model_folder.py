"""What a folder says of itself: stop ids, sampling defaults, dtype and architecture, in either dialect."""

import json
from pathlib import Path
from typing import Any

import pytest

from trefoil_models.config_keys import CheckpointError
from trefoil_models.model_folder import GenerationDefaults, ModelFolder, find_folder
from trefoil_models.sentence_files import SentenceFiles


def folder(path: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> ModelFolder:
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return ModelFolder.read(path)


@pytest.mark.parametrize(
    ("config", "generation", "wanted"),
    [
        ({}, None, ()),
        ({"eos_token_id": 2}, None, (2,)),
        ({"eos_token_id": 0}, {}, (0,)),
        ({"eos_token_id": [2, 3]}, {}, (2, 3)),
        ({"eos_token_id": 2}, {"eos_token_id": [128001, 128009]}, (128001, 128009)),
        ({"eos_token_id": 2}, {"eos_token_id": 0}, (0,)),
        ({"eos_token_id": 2}, {"eos_token_id": None}, (2,)),
        ({"eos_token_id": None}, None, ()),
    ],
    ids=str,
)
def test_stop_ids_come_from_generation_config_first(
    config: dict[str, Any], generation: dict[str, Any] | None, wanted: tuple[int, ...], tmp_path: Path
) -> None:
    assert folder(tmp_path, config, generation).eos_ids == wanted


@pytest.mark.parametrize("value", ["</s>", True, [1, "2"], 1.5, {}], ids=str)
def test_a_bad_stop_id_is_named_with_its_file(value: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id"):
        _ = folder(tmp_path, {"eos_token_id": 2}, {"eos_token_id": value}).eos_ids


def test_generation_defaults_are_read_and_silence_stays_none(tmp_path: Path) -> None:
    given = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1, "min_p": None, "do_sample": True}
    defaults = folder(tmp_path, {}, {**given, "max_new_tokens": 7, "transformers_version": "4.40"}).defaults
    assert defaults == GenerationDefaults(
        temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1, max_new_tokens=7
    )


def test_no_generation_config_means_no_defaults(tmp_path: Path) -> None:
    assert folder(tmp_path, {"temperature": 0.1}).defaults == GenerationDefaults()


@pytest.mark.parametrize(("key", "value"), [("temperature", "hot"), ("top_k", -1), ("top_p", True), ("top_k", 1.5)])
def test_a_bad_default_is_named_with_its_file(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {key} = "):
        _ = folder(tmp_path, {}, {key: value}).defaults


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, "float32"),
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float16"}, "float16"),
        ({"torch_dtype": "torch.float16"}, "float16"),
        ({"dtype": None, "torch_dtype": "bfloat16"}, "bfloat16"),
    ],
    ids=str,
)
def test_dtype_is_read_in_either_dialect(config: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    assert folder(tmp_path, config).dtype_name == wanted


def test_architecture_falls_back_to_the_model_type(tmp_path: Path) -> None:
    assert folder(tmp_path, {"architectures": ["LlamaForCausalLM"]}).architecture == "LlamaForCausalLM"
    assert folder(tmp_path, {"architectures": None}).architecture == "llama"
    assert folder(tmp_path, {"architectures": []}).architecture == "llama"


def test_a_local_folder_is_found_as_it_is(tmp_path: Path) -> None:
    assert find_folder(str(tmp_path)) == tmp_path.resolve()


@pytest.mark.parametrize("source", ["/no/such/folder", "./nowhere", "~/nowhere/at/all", "a/b/c"])
def test_a_path_that_is_not_there_is_named(source: str) -> None:
    with pytest.raises(CheckpointError, match=source):
        find_folder(source)


@pytest.mark.parametrize("source", ["nobody/nothing", "bad name!", ""])
def test_a_hub_id_that_cannot_be_had_is_named(source: str) -> None:
    with pytest.raises(CheckpointError, match=repr(source)) as caught:
        find_folder(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pooling", "wanted"),
    [
        ({"pooling_mode": "cls"}, ("cls",)),
        ({"pooling_mode": ["mean", "max"]}, ("mean", "max")),
        ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}, ("cls", "max")),
    ],
)
def test_pooling_is_read_in_either_dialect(tmp_path: Path, pooling: dict[str, Any], wanted: tuple[str, ...]) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    assert SentenceFiles.read(tmp_path).modes == wanted


@pytest.mark.parametrize("mode", ["median", ["median"], [["mean"]], [], 7, None], ids=str)
def test_pooling_of_another_kind_is_refused(tmp_path: Path, mode: object) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))
    with pytest.raises(CheckpointError, match=r"1_Pooling/config\.json: "):
        SentenceFiles.read(tmp_path)
