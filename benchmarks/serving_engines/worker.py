"""The least server that `load.py` can ask, before an engine of somebody else; knows nothing of ours.

    python with_<library>.py FOLDER PORT KIND

A token's text is a mark: only how many there are and when they come is measured.
"""

import json
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

THREADS = 2


class Engine(Protocol):
    """Counts of new tokens, as they come."""

    def answer(self, ids: list[int], max_tokens: int) -> Iterator[int]: ...


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


def serve(load: Callable[[Path, str], Engine]) -> None:
    """Load `load(folder, kind)` and serve until the process is ended."""
    folder, port, kind = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    Handler.engine = load(folder, kind)
    Server(("127.0.0.1", port), Handler).serve_forever()
