"""An engine that cannot be started is told, never waited for."""

import asyncio
import sys
from pathlib import Path

import pytest

from trefoil import wire
from trefoil.api.engine_processes import EngineNotStarted, EngineProcesses

SPEC = wire.EngineSpec(name="a", folder="nowhere", inbox="ipc://in", outbox="ipc://out")


@pytest.mark.parametrize(
    ("interpreter", "why"), [("/nonexistent", "did not start: No such file"), ("/bin/false", "the fork server ended")]
)
async def test_a_fork_server_that_does_not_run_is_told(
    interpreter: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert interpreter == "/nonexistent" or Path(interpreter).exists()
    monkeypatch.setattr(sys, "executable", interpreter)
    with pytest.raises(EngineNotStarted, match=why):
        await asyncio.wait_for(EngineProcesses().start(SPEC), timeout=30)
