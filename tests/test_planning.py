"""What is planned for a config is what the engine takes for its model."""

from pathlib import Path

import pytest
import torch

import tiny
import tiny_pairs
from trefoil.engine.memory import bytes_of_page
from trefoil.planning import CacheShape
from trefoil_models import checkpoint
from trefoil_models.model_folder import ModelFolder


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny_pairs.FAMILIES])
def test_a_token_takes_what_was_planned(tmp_path: Path, family: str) -> None:
    write = tiny_pairs.checkpoint if family in tiny_pairs.FAMILIES else tiny.checkpoint
    folder = write(tmp_path / "m", family)
    taken = bytes_of_page(checkpoint.inspect(folder).model.sites, page_size=1, dtype=torch.bfloat16)
    sides = 2 if family in tiny_pairs.FAMILIES else 1  # what an encoder's rows leave is of the same size
    assert CacheShape.read(ModelFolder.read(folder).config).bytes_per_token("bfloat16") == sides * taken
