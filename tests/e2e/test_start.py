"""What cannot be served is refused in one line, with exit status 2, before the port opens."""

import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from e2e.serving import command, environment

FAST = ("--kv-cache-memory", "16MiB")


def refusal(*arguments: str, **env: str) -> str:
    """The one line with which `trefoil serve` refuses."""
    done = subprocess.run(
        command("serve", *arguments), env=environment(env), capture_output=True, text=True, timeout=60, check=False
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("timestamp=")]
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("trefoil: ")
    assert "event=listening" not in done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("--dtype", "float8", "bfloat16"),
        ("--port", "abc", "integer"),
        ("--port", "70000", "65535"),
        ("--kv-cache-memory", "2XB", "2GiB"),
        ("--kv-cache-memory", "-1", "2GiB"),
        ("--kv-cache-dtype", "int8", "'auto', 'float32', 'bfloat16', 'float16', 'fp8', 'fp8_e4m3', 'fp8_e5m2'"),
        ("--max-body-size", "much", "MiB"),
        ("--device", "tpu", "cuda"),
        ("--max-num-seqs", "0", "equal to 1"),
        ("--max-num-batched-tokens", "8", "--max-num-seqs"),
        ("--memory-utilization", "2", "0.98"),
        ("--rate-limit", "0/minute", "60/minute"),
        ("--rate-limit", "fast", "60/minute"),
        ("--cors-origin", "app.example", "https://"),
        ("--cors-origin", "https://app.example/page", "without a path"),
        ("--otlp-traces-endpoint", "collector:4317", "4318"),
        ("--request-timeout", "0", "0.01"),
        ("--max-upload-size", "none", "GiB"),
        ("--tensor-parallel-size", "0", "equal to 1"),
    ],
)
def test_a_bad_flag_is_named_with_its_value(folders: dict[str, Path], flag: str, value: str, told: str) -> None:
    line = refusal(str(folders["a"]), flag, value)
    assert flag in line
    assert value in line
    assert told in line


def test_an_unknown_flag_is_named(folders: dict[str, Path]) -> None:
    assert "--colour" in refusal(str(folders["a"]), "--colour", "red")


def test_a_bad_variable_is_named(folders: dict[str, Path]) -> None:
    line = refusal(str(folders["a"]), TREFOIL_PORT="abc")
    assert "TREFOIL_PORT" in line
    assert "abc" in line


def test_key_files_without_a_key_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# nobody\n")
    for name in ("empty", "absent"):
        line = refusal(str(folders["a"]), "--api-key-file", str(tmp_path / name))
        assert "--api-key-file" in line
        assert name in line


def test_two_models_of_one_name_are_refused(folders: dict[str, Path]) -> None:
    assert "name=" in refusal(f"a={folders['a']}", f"a={folders['b']}")


def damaged(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def unknown_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mamba9"}))


def wrong_shape(folder: Path) -> None:
    tiny.edit_config(folder, lambda config: config.update(hidden_size=64))


DAMAGES: dict[Callable[[Path], None], str] = {
    damaged: "model.safetensors",
    no_json: "config.json",
    no_config: "config.json",
    no_weights: "safetensors",
    no_tokenizer: "tokenizer",
    unknown_type: "mamba9",
    wrong_shape: "shape",
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_folder_that_cannot_be_served_is_named(
    folders: dict[str, Path], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = shutil.copytree(folders["a"], tmp_path / "broken")
    damage(folder)
    line = refusal(f"broken={folder}", "--port", "0", *FAST)
    assert "broken" in line
    assert DAMAGES[damage] in line


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "nowhere" in refusal(str(tmp_path / "nowhere"), "--port", "0")


@pytest.mark.slow
def test_a_length_that_does_not_fit_is_named(folders: dict[str, Path]) -> None:
    assert "--max-model-len" in refusal(f"a={folders['a']}", "--port", "0", "--max-model-len", "99999", *FAST)


def test_a_port_in_use_is_named(folders: dict[str, Path]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = refusal(str(folders["a"]), "--port", port)
    assert port in line
    assert "in use" in line
