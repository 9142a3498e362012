"""One server with tiny encoder-decoders for the session."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny
import tiny_pairs
from e2e.serving import Server, serving_soundly

FLAGS = ("--dtype", "float32", "--kv-cache-memory", "32MiB")
WISHES = {
    "summarization": {"prefix": "sum: ", "num_beams": 3, "max_length": 20, "no_repeat_ngram_size": 2},
    "translation_en_to_de": {"prefix": "to German: ", "max_length": 12},
    "translation_en_to_fr": {"prefix": "to French: ", "max_length": 12},
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoints that the server serves, by model name."""
    root = tmp_path_factory.mktemp("pairs")
    t5 = tiny_pairs.add_sentinels(tiny_pairs.checkpoint(root / "t5", "t5"))
    tiny.edit_config(t5, lambda config: config.update(task_specific_params=WISHES, n_positions=128))
    bart = tiny_pairs.checkpoint(root / "bart", "bart", forced_bos_token_id=5)
    tiny.edit_config(bart, lambda about: about.update(mask_token=tiny.SPECIALS[3]), "tokenizer_config.json")
    return {"t5": t5, "bart": bart}


@pytest.fixture(scope="session")
def server(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The session's server of encoder-decoders."""
    log = tmp_path_factory.mktemp("log") / "stderr"
    with serving_soundly(log, *(f"{name}={folder}" for name, folder in folders.items()), *FLAGS) as running:
        yield running
