"""Eight adapters beside the base are timed only where each gets what it gets alone."""

from pathlib import Path

import pytest
import torch

import shapes
from adapters import NAMES, check, make_adapters, one_round
from offline import generating, spec_of
from trefoil import wire
from workload import Span, Workload

ASKED = Workload(18, input_len=Span(3, 9), output_len=Span(6, 6), vocab_size=1000)


def test_adapters_are_timed_after_their_check(tmp_path: Path) -> None:
    folder = shapes.make_checkpoint("tiny", tmp_path / "base", torch.float32)
    base, mixed = (generating(spec_of(folder, kv_cache_memory="2MiB")) for _ in range(2))
    for name, adapter in make_adapters(folder, tmp_path, 4).items():
        mixed.load_adapter(wire.LoadAdapter(name, str(adapter)))
    check(mixed, ASKED.requests())
    assert all(rate > 0 for rate in one_round(base, mixed, ASKED, 0).values())
    mixed.load_adapter(wire.LoadAdapter(NAMES[2] or "", str(tmp_path / "adapter-0")))
    with pytest.raises(AssertionError, match="answer alike"):
        check(mixed, ASKED.requests())
