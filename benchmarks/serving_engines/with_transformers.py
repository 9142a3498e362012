"""transformers: `generate`, which answers one request after the other, or `continuous`, its continuous batching."""

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import worker
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
from transformers.generation.streamers import BaseStreamer

NUM_PAGES, STEP_TOKENS = 96, 512


class Generate:
    """`model.generate`, told token by token."""

    def __init__(self, model: Any) -> None:
        self._model, self._turn = model, threading.Lock()

    def answer(self, ids: list[int], max_tokens: int) -> Iterator[int]:
        told: queue.Queue[int] = queue.Queue()

        class Told(BaseStreamer):
            is_prompt = True

            def put(self, value: torch.Tensor) -> None:
                if not self.is_prompt:
                    told.put(value.numel())
                self.is_prompt = False

            def end(self) -> None:
                told.put(0)

        def run() -> None:
            with self._turn, torch.inference_mode():
                self._model.generate(
                    torch.tensor([ids]),
                    max_new_tokens=max_tokens,
                    min_new_tokens=max_tokens,
                    do_sample=False,
                    streamer=Told(),
                )

        threading.Thread(target=run, daemon=True).start()
        yield from iter(told.get, 0)


class Continuous:
    """Its continuous batching, which schedules all requests itself."""

    def __init__(self, model: Any) -> None:
        config = ContinuousBatchingConfig(num_blocks=NUM_PAGES, max_batch_tokens=STEP_TOKENS)
        plain = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        self._manager = model.init_continuous_batching(plain, config)
        self._manager.start()
        self._told: dict[str, queue.Queue[Any]] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def answer(self, ids: list[int], max_tokens: int) -> Iterator[int]:
        name = f"{threading.get_ident()}-{id(ids)}"
        told = self._told[name] = queue.Queue()
        self._manager.add_request(ids, request_id=name, max_new_tokens=max_tokens, streaming=True, eos_token_id=-1)
        known = 0
        while True:
            output = told.get()
            yield len(output.generated_tokens) - known
            known = len(output.generated_tokens)
            if output.is_finished():
                del self._told[name]
                return

    def _listen(self) -> None:
        while True:
            output = self._manager.get_result(timeout=1.0)
            if output is not None:
                self._told[output.request_id].put(output)


def load(folder: Path, kind: str) -> worker.Engine:
    torch.set_num_threads(worker.THREADS)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    return Generate(model) if kind == "generate" else Continuous(model)


if __name__ == "__main__":
    worker.serve(load)
