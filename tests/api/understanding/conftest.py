"""One server with tiny encoders of several heads, and a decoder, for the session."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny
import tiny_encoders
from e2e.serving import Server, serving_soundly

LABELS = {0: "contradiction", 1: "neutral", 2: "entailment"}
NAMES = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}
FLAGS = ("--dtype", "float32", "--kv-cache-memory", "16MiB", "--max-num-batched-tokens", "96")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoints that the server serves, by model name."""
    root = tmp_path_factory.mktemp("encoders")
    return {
        "writer": tiny.checkpoint(root / "writer", "llama"),
        "sorter": tiny_encoders.checkpoint(root / "sorter", "bert", "ForSequenceClassification", id2label=LABELS),
        "tagger": tiny_encoders.checkpoint(root / "tagger", "roberta", "ForTokenClassification", id2label=NAMES),
        "reader": tiny_encoders.checkpoint(root / "reader", "distilbert", "ForQuestionAnswering"),
        "filler": tiny_encoders.checkpoint(root / "filler", "bert", "ForPreTraining"),
    }


@pytest.fixture(scope="session")
def server(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The session's server of encoders."""
    log = tmp_path_factory.mktemp("log") / "stderr"
    with serving_soundly(log, *(f"{name}={folder}" for name, folder in folders.items()), *FLAGS) as running:
        yield running
