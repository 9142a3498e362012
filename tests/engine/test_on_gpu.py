"""The engines on a GPU: captured decode steps, started one ahead, give the tokens of steps that are waited for.

Encoder-decoders and encoders answer there as transformers does.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
import tiny_encoders
import tiny_pairs
from engine_world import request, run
from trefoil import wire
from trefoil.engine.generator import Generator
from trefoil.engine.graphs import CudaCapture
from trefoil.engine.memory import MemoryPlan
from trefoil.engine.one_pass import OnePass
from trefoil.engine.startup import build_generator
from trefoil_models import checkpoint
from trefoil_models.packing import lay_together
from trefoil_models.pooling import Pooling
from trefoil_models.sentence_files import SentenceFiles

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]


def on_gpu(folder: Path, *, is_captured: bool) -> Generator:
    model = checkpoint.load(folder, dtype=torch.float32, device="cuda")
    lay_together(model)
    longest = model.config.longest
    return build_generator(
        model,
        MemoryPlan(2000, 16, 1, longest, longest if model.kind == "encoder-decoder" else 0),
        max_num_seqs=20,
        max_num_batched_tokens=64,
        prefix_caching=True,
        never=[],
        capture=CudaCapture() if is_captured else None,
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_steps_ahead_give_the_tokens_of_steps_waited_for(family: str, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "m", family, std=0.2)
    told = []
    for is_captured in (True, False):
        engine, got = on_gpu(folder, is_captured=is_captured), dict[str, list[int]]()
        for n, ids in enumerate(tiny.draw_ids(*range(1, 41))):
            engine.submit(request(str(n), ids, 5 + n % 17, stop_ids=[n], temperature=n % 3 / 2, seed=n, top_k=40))
        while engine.has_work:
            for event in engine.step():
                if isinstance(event, wire.Tokens):
                    got.setdefault(event.id, []).extend(event.ids)
            engine.check_books()
        assert engine.scheduler.pool.num_used == 0
        told.append(got)
    same = sum(told[0][name] == ids for name, ids in told[1].items())
    assert same >= 38  # of 40: float32 sums in another order may tip a draw


@pytest.mark.parametrize("family", tiny_pairs.FAMILIES)
def test_encoder_decoders_answer_as_transformers(family: str, tmp_path: Path) -> None:
    folder, sources = tiny_pairs.checkpoint(tmp_path / "m", family), tiny.draw_ids(33, 1, 50, 7, 90, 12)
    asked = [
        request(str(n), [tiny_pairs.START], 40, source=source, stop_ids=(tiny_pairs.EOS,))
        for n, source in enumerate(sources)
    ]
    theirs = tiny_pairs.oracle(folder)
    wanted = {
        (str(n), 0): theirs.generate(torch.tensor([source]), max_new_tokens=40, do_sample=False, num_beams=1)[
            0, 1:
        ].tolist()
        for n, source in enumerate(sources)
    }
    assert run(on_gpu(folder, is_captured=False), asked) == wanted


@pytest.mark.parametrize("family", ["albert", "bert", "distilbert", "roberta", "xlm-roberta"])
def test_encoders_score_as_transformers(family: str, tmp_path: Path) -> None:
    folder = tiny_encoders.checkpoint(tmp_path / "m", family, "ForTokenClassification")
    model = checkpoint.load(folder, device="cuda")
    pooling = Pooling(SentenceFiles(), kind="encoder")
    passes = OnePass(model, pooling, max_rows=64, max_model_len=model.config.longest)
    asked = [wire.Once(str(length), list(range(5, 5 + length)), "tag") for length in (7, 1, 40)]
    for one in asked:
        assert passes.submit(one) == []
    theirs = tiny_encoders.oracle(folder)
    for one, event in zip(asked, passes.step(), strict=True):
        assert isinstance(event, wire.Scores)
        with torch.no_grad():
            wanted = theirs(torch.tensor([one.ids])).logits[0].numpy()
        assert np.frombuffer(event.data, "<f4").reshape(event.shape) == pytest.approx(wanted, abs=1e-4)
