"""One pass for many texts: what was asked, in order of arrival, within the budget, nothing lost."""

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_encoders
from trefoil import wire
from trefoil.engine.encoder_tape import EncoderTape
from trefoil.engine.one_pass import OnePass
from trefoil_kernels.cpu.calls import KINDS
from trefoil_kernels.cpu.library import native
from trefoil_kernels.cpu.tape import NotRecordable
from trefoil_models import checkpoint
from trefoil_models.packing import pack
from trefoil_models.pooling import Pooling
from trefoil_models.sentence_files import SentenceFiles


def engine(folder: Path, head: str, rows: int = 16) -> OnePass:
    """A float32 engine without a process."""
    model = checkpoint.load(tiny_encoders.checkpoint(folder, "bert", head))
    pooling = Pooling(SentenceFiles(), kind="encoder")
    return OnePass(model, pooling, max_rows=rows, max_model_len=model.config.longest)


def once(name: str, length: int, head: str) -> wire.Once:
    return wire.Once(name, list(range(5, 5 + length)), head)


def test_the_longest_wait_goes_first_within_the_budget(tmp_path: Path) -> None:
    passes = engine(tmp_path, "ForTokenClassification")
    for number, length in enumerate((10, 5, 3, 40, 2)):
        assert passes.submit(once(str(number), length, "tag")) == []
    steps = []
    while passes.has_work:
        steps.append([event.id for event in passes.step()])
    assert steps == [["0", "1"], ["2"], ["3"], ["4"]]


def test_each_text_gets_the_scores_it_would_get_alone(tmp_path: Path) -> None:
    passes = engine(tmp_path, "ForSequenceClassification", rows=64)
    theirs = tiny_encoders.oracle(tmp_path)
    asked = [once(str(length), length, "class") for length in (7, 1, 12)]
    for request in asked:
        passes.submit(request)
    for request, event in zip(asked, passes.step(), strict=True):
        assert isinstance(event, wire.Scores)
        with torch.no_grad():
            wanted = theirs(torch.tensor([request.ids])).logits[0].numpy()
        assert np.frombuffer(event.data, "<f4").reshape(event.shape) == pytest.approx(wanted, abs=1e-4)


STORED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


@pytest.mark.parametrize("quantization", [None, *STORED])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "albert"])
def test_a_taped_pass_gives_the_same_numbers(family: str, quantization: str | None, tmp_path: Path) -> None:
    library = native()
    if library is None or (quantization and not library.products.packs(KINDS[STORED[quantization]])):
        pytest.skip("no native library that multiplies so on this machine")
    folder = tiny_encoders.checkpoint(tmp_path, family, "ForTokenClassification")
    asked = [once(f"{number}", length, "tag") for number, length in enumerate((3, 30, 1, 7, 40, 2, 9))]
    asked[1] = wire.Once("1", asked[1].ids, "tag", [0] * 15 + [1] * 15)

    def answers(max_taped: int) -> list[wire.Event]:
        model = checkpoint.load(folder)
        pack(model, quantization)
        tape = EncoderTape(library, model, max_taped) if max_taped else None
        pooling = Pooling(SentenceFiles(), kind="encoder")
        passes = OnePass(model, pooling, max_rows=33, max_model_len=model.config.longest, tape=tape)
        for request in asked:
            assert passes.submit(request) == []
        found = []
        while passes.has_work:
            found += passes.step()
        return found

    assert answers(33) == answers(0)


def test_a_family_of_which_torch_computes_a_part_has_no_tape(tmp_path: Path) -> None:
    library = native()
    if library is None:
        pytest.skip("no native library on this machine")
    model = checkpoint.load(tiny_encoders.checkpoint(tmp_path, "bert", "ForTokenClassification", hidden_act="tanh"))
    pack(model)
    with pytest.raises(NotRecordable, match="tanh"):
        EncoderTape(library, model, 32)


def test_an_aborted_request_is_forgotten(tmp_path: Path) -> None:
    passes = engine(tmp_path, "ForTokenClassification")
    passes.submit(once("a", 3, "tag"))
    passes.submit(once("b", 3, "hidden"))
    passes.abort(wire.Abort("a"))
    assert [event.id for event in passes.step()] == ["b"]
    assert not passes.has_work


@pytest.mark.parametrize(
    "request_",
    [
        wire.Once("x", [], "tag"),
        wire.Once("x", [5] * 65, "tag"),
        wire.Once("x", [tiny_encoders.VOCAB], "tag"),
        wire.Once("x", [5], "span"),
        wire.Once("x", [5, 6], "tag", [0]),
        wire.Once("x", [5], "mask", rows=[0]),
        wire.Generate("x", [5], wire.SamplingParams(max_tokens=1)),
    ],
    ids=["empty", "too long", "no such token", "no such head", "types", "no masks", "generate"],
)
def test_what_can_never_run_is_refused(tmp_path: Path, request_: wire.Request) -> None:
    passes = engine(tmp_path, "ForTokenClassification")
    (event,) = passes.submit(request_)
    assert isinstance(event, wire.Failed)
    assert not passes.has_work
