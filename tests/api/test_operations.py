"""One server as an on-call person sets it up: keys from a file, another origin, traces, a time limit, JSON logs."""

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import tiny
from e2e.serving import Server, eventually, serving
from trefoil.api.connection import MOST_HEAD

ORIGIN = "https://app.example"
KEYS = "# who may ask\nkey-1\n\nkey-2  # the second\n"
OPEN = {"/health", "/ready"}
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector(BaseHTTPRequestHandler):
    """Takes spans as an OpenTelemetry collector does."""

    spans: list[Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
        request = ExportTraceServiceRequest.FromString(body)
        self.spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def spans() -> Iterator[tuple[str, list[Any]]]:
    """A collector's address and what it was sent."""
    taken: list[Any] = []
    http = HTTPServer(("127.0.0.1", 0), type("Own", (Collector,), {"spans": taken}))
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/v1/traces", taken
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory, spans: tuple[str, list[Any]]) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("operated")
    (root / "keys").write_text(KEYS)
    folder = tiny.checkpoint(root / "a", "llama", max_position_embeddings=16_384)
    flags = ("--api-key-file", str(root / "keys"), "--cors-origin", ORIGIN, "--request-timeout", "2", "--log-json")
    flags += ("--body-timeout", "1")
    env = {"TREFOIL_OTLP_TRACES_ENDPOINT": spans[0], "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with serving(root / "stderr", str(folder), *flags, "--kv-cache-memory", "32MiB", env=env) as running:
        yield running


@pytest.fixture
def http(operated: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=operated.url, headers={"authorization": "Bearer key-2"}, timeout=30) as client:
        yield client


def routes(http: httpx.Client) -> list[tuple[str, str]]:
    paths = http.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def test_every_route_but_the_probes_asks_for_a_key(http: httpx.Client) -> None:
    asked = [*routes(http), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/v1/nothing")]
    assert len(asked) > 10
    for method, path in asked:
        for key in ("", "Bearer wrong", "Bearer", "Basic key-1", "Bearer key-1 key-2", "Bearer # who may ask"):
            answer = http.request(method, path, headers={"authorization": key})
            assert (answer.status_code == 401) == (path not in OPEN), (method, path, key)
        for key in ("key-1", "key-2"):
            answer = http.request(method, path, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code != 401, (method, path, key)


def test_another_origin_may_call_where_it_was_named(http: httpx.Client) -> None:
    asking = {"origin": ORIGIN, "access-control-request-method": "POST"}
    preflight = http.options("/v1/completions", headers={**asking, "authorization": ""})
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    refused = http.get("/v1/models", headers={"origin": ORIGIN, "authorization": ""})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)
    other = http.get("/v1/models", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_an_endless_answer_is_ended_and_frees_its_pages(http: httpx.Client) -> None:
    begun = time.monotonic()
    answer = http.post("/v1/completions", json={"prompt": [5], "max_tokens": 16_000, "ignore_eos": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "request_timeout")
    assert time.monotonic() - begun < 6
    eventually(lambda: 'num_requests_running{model_name="a"} 0.0' in http.get("/metrics").text, within_s=10)


def said(server: Server, *parts: bytes) -> tuple[int, str | None]:
    """What a connection answers, until it closes, to what it is sent: the status, and the error's code."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as one:
        for part in parts:
            one.sendall(part)
        answer = b"".join(iter(lambda: one.recv(65536), b""))
    head, _, body = answer.decode().partition("\r\n\r\n")
    assert not answer or "x-request-id" in head
    return (int(head.split()[1]), json.loads(body).get("error", {}).get("code")) if answer else (0, None)


GET = b"GET /health HTTP/1.1\r\nconnection: close\r\n"


@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [
        ((), 0, None),
        ((GET,), 408, "head_timeout"),
        ((GET, b"x: " + b"a" * (MOST_HEAD - len(GET) - 2)), 431, "head_too_large"),
        ((b"\x16\x03\x01\x02\x00\r\n\r\n",), 400, "invalid_value"),
        ((GET, b"\r\n"), 200, None),
    ],
    ids=["silent", "half a head", "endless head", "TLS", "in two parts"],
)
def test_what_is_no_request_is_answered_and_let_go(
    operated: Server, parts: tuple[bytes, ...], status: int, code: str | None
) -> None:
    assert said(operated, *parts) == (status, code)


def test_a_wish_for_http_2_costs_no_body(http: httpx.Client) -> None:
    """Java's client has it by default."""
    upgrade = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAEAAEAAAAIAAAAB"}
    answer = http.post("/v1/completions", json={"prompt": [5], "max_tokens": 1}, headers=upgrade)
    assert answer.status_code == 200


def test_a_request_leaves_a_span_under_its_callers(http: httpx.Client, spans: tuple[str, list[Any]]) -> None:
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "x-request-id": "mine"}
    http.post("/v1/completions", json={"prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True}, headers=headers)
    eventually(lambda: any(span.trace_id.hex() == TRACE for span in spans[1]), within_s=10)
    (span,) = (span for span in spans[1] if span.trace_id.hex() == TRACE)
    told = {item.key: item.value for item in span.attributes}
    assert span.parent_span_id.hex() == "b7ad6b7169203331"
    assert told["http.route"].string_value == "/v1/completions"
    assert told["trefoil.request_id"].string_value == "mine"
    assert (told["gen_ai.usage.input_tokens"].int_value, told["gen_ai.usage.output_tokens"].int_value) == (3, 4)
    waited, took = (told[f"gen_ai.latency.{name}"].double_value for name in ("time_in_queue", "e2e"))
    assert 0 < waited < took


def test_logs_are_json_with_request_ids_and_without_keys(http: httpx.Client, operated: Server) -> None:
    http.get("/v1/models", headers={"x-request-id": "look-for-me"})
    eventually(lambda: operated.said("look-for-me"), within_s=5)
    lines = [json.loads(line) for line in operated.log.read_text().splitlines()]
    (line,) = (line for line in lines if line.get("request_id") == "look-for-me")
    assert (line["event"], line["method"], line["path"], line["status"]) == ("request", "GET", "/v1/models", 200)
    assert not operated.said("key-1")
    assert not operated.said('"path": "/health"')


def test_times_of_a_request_are_measured(http: httpx.Client, operated: Server) -> None:
    http.post("/v1/completions", json={"prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True})
    text = http.get("/metrics").text
    for name in ("queue", "prefill", "decode", "inference"):
        assert f'trefoil:request_{name}_time_seconds_count{{model_name="a"}} 0.0' not in text
        assert f'trefoil:request_{name}_time_seconds_count{{model_name="a"}}' in text
    assert 'trefoil:cache_config_info{block_size="16",model_name="a",num_gpu_blocks="' in text
