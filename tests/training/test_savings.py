"""What saves time or memory changes nothing that is learnt: stopping at once, bfloat16, recomputed layers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.profiler import ProfilerActivity, profile

import tiny
import tiny_encoders
import tiny_pairs
from training.bench import Bench
from training.conftest import trainable
from training.shop import CHATS
from trefoil.store.jobs import State, Want
from trefoil.training.attempt import recompute_layers
from trefoil.training.examples import Example, Reading
from trefoil.training.objectives.masked_lm import MaskedLM
from trefoil.training.objectives.sft import Sft
from trefoil_models.adapter_files import read_adapter
from trefoil_models.checkpoint import Model

pytestmark = pytest.mark.slow

FAMILIES = [*tiny.FAMILIES, "bert", "albert", "t5", "bart"]


@pytest.mark.parametrize(("want", "state"), [(Want.CANCEL, State.CANCELLED), (Want.PAUSE, State.PAUSED)])
def test_nothing_is_computed_after_the_step_in_which_it_was_asked_to_stop(
    bench: Bench, folder: Path, want: Want, state: State
) -> None:
    job = bench.submit(folder, "supervised", CHATS)
    num_asked = 0

    def ask_in_the_third() -> bool:
        nonlocal num_asked
        num_asked += 1
        if num_asked == 3:
            bench.store.jobs.ask(job.id, want)
        return False

    bench.train(ask_in_the_third)
    assert bench.store.jobs.get(job.id).state == state
    assert bench.store.jobs.last_step(job.id) == num_asked == 3


@pytest.mark.parametrize("lora", [{"r": 4}, None], ids=["lora", "all weights"])
def test_bfloat16_learns_what_float32_learns(bench: Bench, folder: Path, lora: dict[str, Any] | None) -> None:
    wide, narrow = (bench.run(folder, "supervised", CHATS, lora=lora, bf16=bf16) for bf16 in (False, True))
    first, *_, last = zip(bench.losses(wide), bench.losses(narrow), strict=True)
    assert first[1] == pytest.approx(first[0], rel=0.02)
    assert last[1] == pytest.approx(last[0], rel=0.1, abs=0.05)
    assert last[1] < 0.7 * first[1]
    if lora is None:
        saved = load_file(bench.folder_of(narrow) / "model.safetensors")
        assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}
    else:
        lows = read_adapter(bench.folder_of(narrow), trainable(folder)).lows
        assert all(low.up_OR.abs().max() > 0 for low in lows.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_layers_have_the_same_gradients(tmp_path: Path, family: str) -> None:
    folder = make(tmp_path / family, family)
    plain, recomputed = trainable(folder), trainable(folder)
    recompute_layers(recomputed)
    for model in (plain, recomputed):
        lossy(model, 40)
    for (name, one), other in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=1e-5)


def test_recomputed_layers_take_less_memory(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "deep", "llama", num_hidden_layers=12)
    plain, recomputed = trainable(folder), trainable(folder)
    recompute_layers(recomputed)
    for model in (plain, recomputed):
        lossy(model, 40)  # gradients take their place before anything is measured
    assert peak(recomputed) < 0.4 * peak(plain)


def make(folder: Path, family: str) -> Path:
    """A tiny checkpoint of a family of any kind."""
    if family in tiny.FAMILIES:
        return tiny.checkpoint(folder, family, std=0.1)
    if family in ("t5", "bart"):
        return tiny_pairs.checkpoint(folder, family)
    return tiny_encoders.checkpoint(folder, family, "ForMaskedLM")


def lossy(model: Model, length: int) -> None:
    """Gradients of a few drawn examples."""
    source, ids = tiny.draw_ids(length, length, vocab=100)
    if model.kind == "encoder":
        torch.manual_seed(0)
        MaskedLM(1, 100, (0,))(model, [Reading(tuple(ids), (0,) * length)] * 2).total.backward()
        return
    has_source = model.kind == "encoder-decoder"
    example = Example(tuple(ids), (False, *[True] * (length - 1)), tuple(source) if has_source else ())
    Sft()(model, [example, example]).total.backward()


def peak(model: Model) -> int:
    """The most bytes that forward and backward have at a time, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        lossy(model, 250)
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
