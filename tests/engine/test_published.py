"""What published modelling code answered about tiny models, we answer too: in one pass, and from pages."""

from pathlib import Path

import pytest
import torch

import published_models
from engine_world import generator, request, run
from trefoil_kernels.cpu.library import native
from trefoil_models import checkpoint
from trefoil_models.attend import packed_rows

names_ = pytest.mark.parametrize("name", published_models.NAMES)


@names_
def test_logits_are_those_of_the_original(name: str, tmp_path: Path) -> None:
    published = published_models.read(name)
    model = checkpoint.load(published.write(tmp_path))
    with torch.no_grad():
        logits_TV = model.lm_head.logits(model(*packed_rows([published.ids])))
    for row, wanted in published.logits.items():
        assert (logits_TV[int(row)] - torch.tensor(wanted)).abs().max() < 1e-4, row


@names_
@pytest.mark.parametrize("rows", [7, 64])
def test_greedy_tokens_are_those_of_the_original(name: str, rows: int, tmp_path: Path) -> None:
    """Also with the prompt in chunks, beside another sequence, and from tapes where a step can be recorded."""
    published = published_models.read(name)
    engine = generator(published.write(tmp_path), rows=rows, recorder=native())
    asked = [request("one", published.ids, len(published.greedy)), request("other", published.ids[5:12], 9)]
    assert run(engine, asked)["one", 0] == published.greedy


@names_
def test_a_prompt_s_beginning_is_shared_only_where_its_keys_are_the_same(name: str, tmp_path: Path) -> None:
    """The length of some families' prompts decides how their first tokens turn."""
    published = published_models.read(name)
    engine = generator(published.write(tmp_path))
    run(engine, [request("its beginning", published.ids[:20], 6)])
    asked = request("the whole", published.ids, len(published.greedy))
    assert run(engine, [asked])["the whole", 0] == published.greedy
