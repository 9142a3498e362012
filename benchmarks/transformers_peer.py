"""transformers behind the least server that `load.py` can ask; runs in its own environment and knows nothing of ours.

    python transformers_peer.py FOLDER PORT generate|continuous

`generate` answers one request after the other by `model.generate`; `continuous` all at once by its continuous batching.
A token's text is a mark: only how many there are and when they come is measured.
"""

import json
import queue
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
from transformers.generation.streamers import BaseStreamer

NUM_PAGES, STEP_TOKENS = 96, 512


class Engine(Protocol):
    """Counts of new tokens, as they come."""

    def answer(self, ids: list[int], max_tokens: int) -> Iterator[int]: ...


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


class Handler(BaseHTTPRequestHandler):
    """GET /health and POST /v1/completions, streamed."""

    engine: Engine

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()
        total = 0
        for count in self.engine.answer(asked["prompt"], asked["max_tokens"]):
            total += count
            for _ in range(count):
                self._tell({"choices": [{"text": "x", "finish_reason": None}]})
        usage = {"completion_tokens": total, "prompt_tokens": len(asked["prompt"])}
        self._tell({"choices": [{"text": "", "finish_reason": "length"}], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def _tell(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()


class Server(ThreadingHTTPServer):
    """All of a row's requests may come at once."""

    request_queue_size = 64


def main() -> None:
    """Serve until it is ended."""
    folder, port, way = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    Handler.engine = Generate(model) if way == "generate" else Continuous(model)
    Server(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
