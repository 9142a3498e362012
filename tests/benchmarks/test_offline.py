"""A named shape is a folder that can be served, and KV waste is counted by the page."""

from pathlib import Path

import pytest
import torch

import shapes
from offline import drive, generating, measure, spec_of, waste
from trefoil import wire
from trefoil.engine.generator import Generator
from trefoil_models import checkpoint
from trefoil_models.model_folder import ModelFolder
from trefoil_models.tokenizer import Tokenizer
from workload import Request, Span, Workload


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.make_checkpoint("tiny", tmp_path_factory.mktemp("shapes") / "tiny", torch.float32)


def spec(folder: Path) -> wire.EngineSpec:
    return spec_of(folder, kv_cache_memory="2MiB")


def generator(folder: Path) -> Generator:
    return generating(spec(folder))


def test_the_shapes_have_the_sizes_they_are_named_for() -> None:
    for shape, parameters in (("llama-110m", 109.5e6), ("qwen2.5-0.5b", 494e6)):
        with torch.device("meta"):
            model = checkpoint.build(shapes.SHAPES[shape], seed=0)
        assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(parameters, rel=0.002)


def test_every_id_of_a_shape_has_its_own_text_and_the_first_ends_it(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.vocab_len == shapes.SHAPES["tiny"]["vocab_size"]
    assert len({tokenizer.token_bytes(token) for token in range(tokenizer.vocab_len)}) == tokenizer.vocab_len
    assert not tokenizer.undecodable
    assert ModelFolder.read(folder).eos_ids == (shapes.END_ID,)


def test_a_workload_gets_whole_answers(folder: Path) -> None:
    workload = Workload(5, 2, input_len=Span(3, 40), output_len=Span(2, 20), vocab_size=1000, ignore_eos=True)
    run = measure(spec(folder), workload)
    assert not run.failures
    assert [record.num_tokens for record in run.records] == [request.max_tokens for request in workload.requests()]
    assert all(len(record.token_times) == record.num_tokens for record in run.records)
    assert len({record.text for record in run.records}) == 5


def test_no_more_run_than_may(folder: Path) -> None:
    most = []
    requests = [Request([7 + number] * 9, 6, 0.0) for number in range(7)]
    drive(generator(folder), requests, 3, watch=lambda engine: most.append(len(engine.scheduler.running)))
    assert max(most) == 3


def test_a_request_that_cannot_run_is_a_failure_and_the_others_go_on(folder: Path) -> None:
    requests = [Request([1] * 3000, 6, 0.0), Request([1, 2], 4, 0.0)]
    ledger = drive(generator(folder), requests, 1)
    refused, fine = ledger.told(Tokenizer.load(folder))
    assert refused.error
    assert (fine.error, fine.num_tokens) == (None, 4)


def test_kv_waste_is_printed_where_it_was_asked_for(folder: Path) -> None:
    workload = Workload(4, 4, input_len=Span(16, 16), output_len=Span(16, 16), vocab_size=1000, ignore_eos=True)
    lines = measure(spec(folder), workload, has_waste=True).extra
    # 16 full slots, then 17 to 31 of 32, with the last token of each answer never stored
    expected = 100 * sum(1 - n / (16 * -(-n // 16)) for n in range(16, 31)) / 15
    assert lines["KV waste, mean over steps (%)"] == pytest.approx(expected)
    assert lines["Mean tokens held by a sequence"] == pytest.approx(sum(range(16, 31)) / 15)


def test_waste_is_the_share_of_unused_slots() -> None:
    assert waste([([0, 1], 20)], 16) == pytest.approx(12 / 32)
    assert waste([([0, 1, 2], 5)], 16) == pytest.approx(43 / 48)
    assert waste([], 16) is None


def test_waste_counts_a_shared_page_once_and_as_its_fullest_holder_has_it() -> None:
    assert waste([([0, 1], 32), ([0, 2], 20)], 16) == pytest.approx(12 / 48)
    assert waste([([0], 3), ([0], 16)], 16) == 0
