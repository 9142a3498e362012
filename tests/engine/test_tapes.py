"""Decode steps played from tapes give what steps called one by one give."""

from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

import tiny
import tiny_pairs
from engine_world import finish, generator, request, run
from trefoil import wire
from trefoil.engine.generator import Generator
from trefoil_kernels.cpu.library import Native
from trefoil_kernels.cpu.tape import NotRecordable, Scratch


def tokens(engine: Generator, asked: list[wire.Generate]) -> list[wire.Tokens]:
    """With their scores."""
    for one in asked:
        engine.submit(one)
    with capture_logs() as logs:
        events = finish(engine)
    assert "no_tape" not in {log["event"] for log in logs}
    return [event for event in events if isinstance(event, wire.Tokens)]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gpt2", "openai-gpt"])
def test_a_taped_engine_gives_the_same_tokens_and_scores(family: str, tmp_path: Path, library: Native) -> None:
    folder = tiny.checkpoint(tmp_path / "m", family)
    asked = [request(f"{n}", ids, 20 + 7 * n, logprobs=2) for n, ids in enumerate(tiny.draw_ids(1, 70, 9, 33))]
    called, taped = (tokens(generator(folder, recorder=recorder), asked) for recorder in (None, library))
    assert called == taped


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_answers_the_same_with_tapes_or_does_without(family: str, tmp_path: Path, library: Native) -> None:
    folder = tiny.checkpoint(tmp_path / "m", family)
    asked = [request(f"{n}", ids, 12) for n, ids in enumerate(tiny.draw_ids(1, 9))]
    assert run(generator(folder, recorder=library), asked) == run(generator(folder), asked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("family", "settings"),
    [("t5", {}), ("t5", {"feed_forward_proj": "gated-gelu"}), ("mt5", {}), ("bart", {}), ("mbart", {})],
    ids=["t5", "t5 v1.1", "mt5", "bart", "mbart"],
)
def test_a_taped_encoder_decoder_gives_the_same_tokens_and_scores(
    family: str, settings: dict[str, str], dtype: torch.dtype, tmp_path: Path, library: Native
) -> None:
    folder = tiny_pairs.checkpoint(tmp_path / "m", family, **settings)
    asked = [
        request(f"{n}", [0], 9 + 5 * n, source=ids, logprobs=2) for n, ids in enumerate(tiny.draw_ids(30, 1, 1, 17))
    ]
    called, taped = (tokens(generator(folder, recorder=recorder, dtype=dtype), asked) for recorder in (None, library))
    assert called == taped


def test_a_family_whose_step_torch_computes_says_so_once_and_answers(tmp_path: Path, library: Native) -> None:
    folder = tiny.checkpoint(tmp_path / "m", "mixtral")
    asked = [request("0", [1, 2, 3], 9), request("1", [4, 5], 12)]
    with capture_logs() as logs:
        got = run(generator(folder, recorder=library), asked)
    assert got == run(generator(folder), asked)
    assert 1 <= [log["event"] for log in logs].count("no_tape") <= 2


def test_a_tape_plays_over_new_numbers_in_the_old_places(library: Native) -> None:
    x_TM, y_TM = torch.ones(3, 5), torch.ones(3, 5)
    tape = library.calls.record(lambda: library.rowwise.add(library.rowwise.add(x_TM, y_TM), y_TM), Scratch())
    assert tape.play().eq(3).all()
    x_TM.fill_(4)
    assert tape.play().eq(6).all()


def test_a_pass_plays_with_fewer_rows_than_it_was_recorded_with(library: Native) -> None:
    x_TM, ids_T, table_VM = torch.ones(8, 5), torch.arange(8), torch.arange(40.0).view(8, 5)
    tape = library.calls.record(
        lambda: library.rowwise.add(library.rowwise.lookup(ids_T, table_VM), x_TM), Scratch(), 8
    )
    whole_TM = tape.play_rows(8)
    assert whole_TM.equal(table_VM + 1)
    table_VM.zero_()
    assert tape.play_rows(3).shape == (3, 5)
    assert whole_TM[:3].eq(1).all()
    assert whole_TM[3:].gt(1).all()


def test_a_pass_with_rows_of_its_own_is_refused(library: Native) -> None:
    ids_T, table_VM = torch.arange(3), torch.ones(3, 5)
    with pytest.raises(NotRecordable, match="Lookup"):
        library.calls.record(lambda: library.rowwise.lookup(ids_T, table_VM), Scratch(), 8)


def test_what_torch_computes_is_refused_and_leaves_no_recording_behind(library: Native) -> None:
    x_TM = torch.ones(3, 5)
    with pytest.raises(NotRecordable, match=r"aten\.mul"):
        library.calls.record(lambda: library.rowwise.add(x_TM * 2, x_TM), Scratch())
    assert library.rowwise.add(x_TM, x_TM).eq(2).all()


@pytest.mark.parametrize("how", ["flatten", "contiguous", "reshape"])
def test_a_view_that_is_a_copy_here_is_refused(how: str, library: Native) -> None:
    x_TGD = torch.ones(3, 4, 5)
    copies = {
        "flatten": lambda: x_TGD[:, :2].flatten(0, 1),
        "contiguous": lambda: x_TGD[:, 1].contiguous(),
        "reshape": lambda: x_TGD[:, 1].reshape(5, 3),
    }
    with torch.inference_mode(), pytest.raises(NotRecordable, match="copies"):
        library.calls.record(lambda: library.rowwise.add(copies[how](), copies[how]()), Scratch())


def test_tapes_of_all_sizes_find_room_in_that_of_the_largest(library: Native) -> None:
    ids_T, table_VM = torch.arange(40), torch.randn(40, 96)
    scratch, largest = Scratch(), 2 * table_VM.nbytes  # two results at a time
    tapes = [
        library.calls.record(
            lambda size=size: library.rowwise.scaled(library.rowwise.lookup(ids_T[:size], table_VM), 2.0), scratch
        )
        for size in range(1, 41)
    ]
    assert scratch.num_bytes <= 4 * largest
    for size, tape in reversed(list(enumerate(tapes, 1))):
        assert tape.play().equal(table_VM[:size] * 2)


def test_scratch_gives_out_again_only_what_nobody_looks_at() -> None:
    scratch = Scratch()
    first = scratch.empty((2, 3), torch.float32)
    seen, at = first.flatten()[2:], first.data_ptr()
    del first
    assert scratch.empty((3, 2), torch.float32).data_ptr() != at
    del seen
    assert scratch.empty((6,), torch.float32).data_ptr() == at
