"""The engine gives the same greedy tokens with the native kernels as with torch alone."""

from pathlib import Path

import pytest

import tiny
from engine_world import generator, request, run
from trefoil_kernels.cpu import library


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_native_and_torch_give_the_same_tokens(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.checkpoint(tmp_path / "m", family)
    requests = [request(f"{n}", ids, 24) for n, ids in enumerate(tiny.draw_ids(1, 70, 9, 33))]
    native = run(generator(folder), requests)
    monkeypatch.setattr(library, "native", lambda: None)
    assert run(generator(folder), requests) == native
