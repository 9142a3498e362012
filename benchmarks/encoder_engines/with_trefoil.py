"""Our engine core in this process, started as `trefoil serve` would start it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import worker

from trefoil import wire
from trefoil.engine.one_pass import OnePass
from trefoil.engine.process import keep_memory
from trefoil.engine.startup import start
from trefoil.settings import Settings


class Trefoil:
    def __init__(self, folder: Path, dtype: str) -> None:
        keep_memory()
        is_int8 = dtype == "int8"
        engine = start(
            wire.EngineSpec(
                name="encoder",
                folder=str(folder),
                inbox="",
                outbox="",
                dtype="float32" if is_int8 else dtype,
                quantization="int8" if is_int8 else None,
                max_num_batched_tokens=Settings(models=()).rows_per_step,
            ),
            lambda message: None,
        )
        assert isinstance(engine, OnePass)
        self.engine = engine

    def vectors(self, sentences: Sequence[str], ids: Sequence[list[int]]) -> np.ndarray:
        for number, own in enumerate(ids):
            assert self.engine.submit(wire.Once(str(number), own, "embed")) == []
        found: dict[int, np.ndarray] = {}
        while self.engine.has_work:
            for event in self.engine.step():
                assert isinstance(event, wire.Scores)
                found[int(event.id)] = np.frombuffer(event.data, "<f4")
        return np.stack([found[number] for number in range(len(ids))])


if __name__ == "__main__":
    worker.serve(Trefoil)
