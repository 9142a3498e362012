"""The engines on a GPU: captured decode steps, started one ahead, give the tokens of steps that are waited for.

Encoder-decoders and encoders answer there as transformers does.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
import tiny_encoders
import tiny_pairs
from engine_world import generator, request, run
from trefoil import wire
from trefoil.engine.generator import Generator
from trefoil.engine.graphs import CudaCapture
from trefoil.engine.memory import MemoryPlan
from trefoil.engine.one_pass import OnePass
from trefoil.engine.startup import build_generator
from trefoil_models import checkpoint
from trefoil_models.attend import packed_rows
from trefoil_models.packing import lay_together, pack, pack_float8_on
from trefoil_models.pooling import Pooling
from trefoil_models.sentence_files import SentenceFiles

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]

WIDE: dict[str, dict[str, int]] = {
    "gpt2": {"n_embd": 128},
    "llama": {"hidden_size": 128, "intermediate_size": 256},
    "mixtral": {"hidden_size": 128, "intermediate_size": 256, "num_experts_per_tok": 4},
}
"""Sizes that the scaled product takes. Of experts all are chosen: a choice of two may fall otherwise after rounding."""


def on_gpu(
    folder: Path, *, is_captured: bool, dtype: torch.dtype = torch.float32, page_dtype: torch.dtype | None = None
) -> Generator:
    model = checkpoint.load(folder, dtype=dtype, device="cuda")
    lay_together(model)
    return engine_of(model, is_captured=is_captured, page_dtype=page_dtype)


def engine_of(model: Any, *, is_captured: bool, page_dtype: torch.dtype | None = None) -> Generator:
    longest, dtype = model.config.longest, page_dtype or model.lm_head.weight.dtype
    return build_generator(
        model,
        MemoryPlan(2000, 16, 1, dtype, longest, longest if model.kind == "encoder-decoder" else 0),
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


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral", "qwen2"])
@torch.no_grad()
def test_8_bit_floats_choose_what_their_numbers_say(family: str, tmp_path: Path) -> None:
    """Rounded activations may turn a choice between near equals; what is chosen is not far from the best."""
    folder = tiny.checkpoint(tmp_path / "m", family, std=0.2, **WIDE.get(family, WIDE["llama"]))
    model = checkpoint.load(folder, dtype=torch.bfloat16)
    pack_float8_on(model, torch.device("cuda"))
    asked = {str(n): ids for n, ids in enumerate(tiny.draw_ids(*range(1, 21)))}
    engine = engine_of(model, is_captured=True)
    answers = run(engine, [request(name, ids, 5 + 2 * int(name)) for name, ids in asked.items()])
    plain = checkpoint.load(folder)
    pack(plain, "fp8")
    behind = []
    for name, ids in asked.items():
        chosen = answers[name, 0]
        logits_TV = plain.lm_head.logits(plain(*packed_rows([ids + chosen[:-1]])))[len(ids) - 1 :]
        best_T, own_T = logits_TV.amax(1), logits_TV[torch.arange(len(chosen)), chosen]
        behind.append((best_T - own_T) / logits_TV.std(1))
    assert torch.cat(behind).mean() < 0.2  # ids drawn at random are 3 behind


@pytest.mark.parametrize("page_dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "deepseek_v2"])
def test_captured_steps_over_pages_of_fewer_bits_answer_as_a_cpu(
    family: str, page_dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = tiny.checkpoint(tmp_path / "m", family, std=0.2)
    asked = [request(str(n), ids, 12) for n, ids in enumerate(tiny.draw_ids(*range(1, 41)))]
    wanted = run(generator(folder, page_dtype=page_dtype, pages=2000), asked)
    got = run(on_gpu(folder, is_captured=True, page_dtype=page_dtype), asked)
    same = sum(got[name] == ids for name, ids in wanted.items())
    assert same >= 34  # of 40: sums in another order tip how some numbers are rounded


@pytest.mark.parametrize("page_dtype", [torch.float8_e4m3fn, torch.float16], ids=str)
def test_captured_steps_in_bfloat16_over_pages_of_another_dtype(page_dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "m", "llama", std=0.2)
    asked = [request(str(n), ids, 4, logprobs=1) for n, ids in enumerate(tiny.draw_ids(*range(1, 41)))]
    engines = (on_gpu(folder, is_captured=c, dtype=torch.bfloat16, page_dtype=page_dtype) for c in (True, False))
    captured, waited_for = (run(engine, asked) for engine in engines)
    assert sum(captured[name] == ids for name, ids in waited_for.items()) >= 34


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
