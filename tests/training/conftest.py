"""A tiny model and its chat tokenizer to train with."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import tiny
from training.bench import Bench
from trefoil_models import checkpoint
from trefoil_models.checkpoint import Model
from trefoil_models.tokenizer import Tokenizer


def trainable(folder: Path) -> Model:
    """The folder's model, every parameter asking for gradients."""
    model = checkpoint.load(folder)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.checkpoint(tmp_path / "tiny", "llama", std=0.1)


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture
def model(folder: Path) -> Model:
    return trainable(folder)


@pytest.fixture
def same_model(folder: Path) -> Model:
    """Another model with the same weights as `model`."""
    return trainable(folder)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    with closing(bench.store):
        yield bench
