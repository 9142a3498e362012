"""A server that is no good: it lists a model, and answers what is asked of it as the request's `user` says."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVENT = b'data: {"object": "text_completion", "choices": [{"index": 0, "text": "ha", "finish_reason": null}]}\n\n'
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
LONG = 10 * 2**20

Answer = Callable[[socket.socket], None]


def said(*parts: bytes) -> Answer:
    """Says this and hangs up."""
    return lambda line: [line.sendall(part) for part in parts] and None


def whole(status: str, body: bytes, *headers: str) -> Answer:
    """A whole answer."""
    head = "\r\n".join((f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers, "", ""))
    return said(head.encode() + body)


def without_end(head: bytes, part: bytes) -> Answer:
    """Goes on for as long as anybody listens."""

    def answer(line: socket.socket) -> None:
        line.sendall(head)
        while True:
            line.sendall(part)

    return answer


def silent(line: socket.socket) -> None:
    """Waits for the other side to give up."""
    line.sendall(STREAM + EVENT)
    line.recv(1)


def refusing(status: str, message: str) -> Answer:
    return whole(status, json.dumps({"error": {"message": message, "param": "body.messages.0", "code": 7}}).encode())


ANSWERS: dict[str, Answer] = {
    "garbage": said(b"\x00\xff no HTTP at all\r\n\r\n"),
    "no JSON": whole("200 OK", b"<html>It works!</html>"),
    "no object": whole("200 OK", b"[1, 2]"),
    "an error as an answer": whole("200 OK", b'{"error": {"message": "out of memory", "code": 500}}'),
    "moved": whole("302 Found", b"", "location: http://169.254.169.254/latest/meta-data"),
    "cut short": said(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"),
    "compressed": whole("200 OK", b"\x1f\x8b\x08", "content-encoding: gzip"),
    "failed": whole("500 Internal Server Error", b"Traceback: /srv/secret/model.py"),
    "key refused": refusing("401 Unauthorized", "sk-secret is no key"),
    "hung up": said(b""),
    "headers without end": without_end(b"HTTP/1.1 200 OK\r\n", b"x-more: of the same\r\n" * 64),
    "an answer without end": without_end(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 2**20),
    "half a line": said(STREAM, EVENT, b'data: {"choi'),
    "an event of garbage": said(STREAM, EVENT, b"data: {]\n\n"),
    "a long line": said(STREAM, EVENT, b"data: " + b"x" * LONG + b"\n\n"),
    "a line without end": without_end(STREAM + EVENT, b"x" * 2**20),
    "no last event": said(STREAM, EVENT),
    "an error on the way": said(STREAM, EVENT, b'data: {"error": {"message": "at 10.1.2.3", "code": 500}}\n\n'),
    "silence": silent,
}

LISTS = {
    "/v1/models": whole("200 OK", b'{"data": [{"id": "bad/model-1"}]}'),
    "/two/models": whole("200 OK", b'{"data": [{"id": "one"}, {"id": "other"}]}'),
    "/closed/models": refusing("401 Unauthorized", "who are you?"),
}
MISSING = whole("404 Not Found", b"<html>Not found</html>")


@contextmanager
def hostile() -> Iterator[str]:
    """Where it is, while it runs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=_serve, args=(listener,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{port}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            line, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(line,), daemon=True).start()


def _answer(line: socket.socket) -> None:
    with line:
        try:
            head, body = _request(line)
            path = head.split(b" ")[1].decode()
            answer = LISTS.get(path, MISSING) if head.startswith(b"GET ") else ANSWERS[json.loads(body)["user"]]
            answer(line)
        except OSError:
            return  # nobody listens any more


def _request(line: socket.socket) -> tuple[bytes, bytes]:
    told = b""
    while b"\r\n\r\n" not in told:
        told += line.recv(65536)
    head, _, body = told.partition(b"\r\n\r\n")
    lengths = [text.partition(b":")[2] for text in head.lower().split(b"\r\n") if text.startswith(b"content-length:")]
    while len(body) < sum(map(int, lengths)):
        body += line.recv(65536)
    return head, body
