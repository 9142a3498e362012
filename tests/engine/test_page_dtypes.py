"""Engines whose pages hold fewer bits than the model computes with: what is answered is what such keys and values give.

The oracle is transformers with a cache that rounds whatever goes into it.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import Cache

import tiny
import tiny_pairs
from engine_world import finish, generator, request, run
from trefoil import wire
from trefoil.engine.startup import choose_page_dtype, dtype_name
from trefoil_kernels.cpu.library import Native
from trefoil_models.config_keys import CheckpointError

FP8 = torch.float8_e4m3fn
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def rounding(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """transformers' caches keep what the only dtype in this list keeps."""
    dtypes: list[torch.dtype] = []
    update = Cache.update

    def rounded(self: Cache, key: Tensor, value: Tensor, *rest: Any, **more: Any) -> Any:
        (dtype,) = dtypes
        return update(self, key.to(dtype).to(key), value.to(dtype).to(value), *rest, **more)

    monkeypatch.setattr(Cache, "update", rounded)
    return dtypes


def first_scores(folder: Path, ids: list[int], dtype: torch.dtype, **more: Any) -> Tensor:
    """Log-probabilities of the 20 likeliest tokens after a prompt whose second half met the first in pages, by id."""
    engine = generator(folder, page_dtype=dtype, rows=7, **more)
    engine.submit(request("one", ids, 1, logprobs=20))
    (event,) = (event for event in finish(engine) if isinstance(event, wire.Tokens))
    scores = torch.full((tiny.VOCAB,), torch.nan)
    for token, logprob in event.scores[0].top:
        scores[token] = logprob
    return scores


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "mistral", "glm", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8], ids=str)
def test_a_decoder_scores_as_transformers_over_a_rounded_cache(
    family: str, dtype: torch.dtype, tmp_path: Path, rounding: list[torch.dtype]
) -> None:
    folder = tiny.checkpoint(tmp_path / "m", family, **({"sliding_window": 9} if family == "mistral" else {}))
    rounding.append(dtype)
    theirs = tiny.oracle(folder)
    for ids in tiny.draw_ids(33, 5):
        with torch.no_grad():
            wanted = theirs(torch.tensor([ids]), use_cache=True).logits[0, -1].log_softmax(-1)
        rounded, full = (
            (first_scores(folder, ids, kept) - wanted).abs().nan_to_num().max() for kept in (dtype, torch.float32)
        )
        assert rounded < full / 8  # sums in another order may tip how a number is rounded


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8], ids=str)
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_answers_as_transformers_over_a_rounded_cache(
    family: str, dtype: torch.dtype, tmp_path: Path, rounding: list[torch.dtype]
) -> None:
    folder, sources = tiny_pairs.checkpoint(tmp_path / "m", family), tiny.draw_ids(33, 1, 50)
    rounding.append(dtype)
    theirs = tiny_pairs.oracle(folder)
    asked = [
        request(str(n), [tiny_pairs.START], 20, source=source, stop_ids=(tiny_pairs.EOS,))
        for n, source in enumerate(sources)
    ]
    wanted = {
        (str(n), 0): theirs.generate(torch.tensor([source]), max_new_tokens=20, do_sample=False, num_beams=1)[
            0, 1:
        ].tolist()
        for n, source in enumerate(sources)
    }
    assert run(generator(folder, page_dtype=dtype), asked) == wanted


@pytest.mark.parametrize("family", ["deepseek_v2", "chatglm"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.05), (FP8, 1.0)], ids=str)
def test_latent_rows_and_contexts_are_near_full_precision(
    family: str, dtype: torch.dtype, bound: float, tmp_path: Path
) -> None:
    folder = tiny.checkpoint(tmp_path / "m", family)
    (ids,) = tiny.draw_ids(33)
    full, rounded = (first_scores(folder, ids, kept) for kept in (torch.float32, dtype))
    apart = (full - rounded).abs()
    assert apart.isfinite().sum() >= 10, "other tokens are likely"
    assert 0 < apart.nan_to_num().max() < bound


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize(
    ("dtype", "page_dtype"), [(torch.float32, torch.bfloat16), (torch.float32, FP8), (torch.bfloat16, FP8)], ids=str
)
def test_tapes_and_shared_prefixes_change_nothing(
    family: str, dtype: torch.dtype, page_dtype: torch.dtype, tmp_path: Path, library: Native
) -> None:
    folder = tiny.checkpoint(tmp_path / "m", family)
    shared, *tails = tiny.draw_ids(21, 1, 3, 9)
    asked = [request(str(n), shared + tail, 20, logprobs=1) for n, tail in enumerate(tails)]
    kinds: dict[str, Any] = {"dtype": dtype, "page_dtype": page_dtype}
    called, taped = generator(folder, **kinds), generator(folder, recorder=library, **kinds)
    answers = run(called, asked)
    assert run(taped, asked) == answers
    if dtype == torch.float32:  # in bfloat16 rows in chunks are rounded otherwise than one row is
        assert run(generator(folder, prefix_caching=False, **kinds), asked) == answers
        assert run(taped, asked) == answers
        assert taped.scheduler.totals.prefix_hits > 0


@pytest.mark.parametrize("make", [tiny, tiny_pairs], ids=["llama", "t5"])
def test_beams_copy_pages_of_fewer_bits(make: Any, tmp_path: Path, library: Native) -> None:
    folder = make.checkpoint(tmp_path / "m", "llama" if make is tiny else "t5", seed=2)
    (ids,) = tiny.draw_ids(23)
    place: dict[str, Any] = {"ids": ids} if make is tiny else {"ids": [tiny_pairs.START], "source": ids}
    asked = [
        request("beams", max_tokens=14, beams=4, n=4, **place),
        request("sampled", n=3, temperature=1.0, seed=1, **place),
    ]
    sizes = [run(generator(folder, page_dtype=FP8, page_size=size, recorder=library), asked) for size in (1, 4, 16)]
    assert sizes[0] == sizes[1] == sizes[2]  # pages of one slot are never half full, so never copied
    assert len({tuple(answer) for answer in sizes[0].values()}) > 4


def test_names_of_page_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("auto", "float32", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2")
    assert [dtype_name(choose_page_dtype(name, torch.float16, CPU)) for name in names] == [
        *("float16", "float32", "bfloat16", "float16", "fp8_e4m3", "fp8_e4m3", "fp8_e5m2")
    ]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert choose_page_dtype("fp8_e5m2", torch.bfloat16, GPU) == torch.float8_e5m2
    with pytest.raises(CheckpointError, match=r"--kv-cache-dtype fp8: this GPU .*: auto, float32, .*, fp8_e5m2$"):
        choose_page_dtype("fp8", torch.bfloat16, GPU)
