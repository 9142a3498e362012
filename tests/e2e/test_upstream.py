"""Another server answers for a model: the same answers, the same errors, and no harm from a server that is no good."""

import json
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient

from e2e.asking import PATH, endless, short, streaming
from e2e.hostile import ANSWERS, hostile
from e2e.serving import Server, eventually, serving
from trefoil.api.fleet import Fleet, StartRefused
from trefoil.api.upstream import RemoteModel, UpstreamUnfit
from trefoil.errors import InvalidSetting
from trefoil.metrics import Metrics
from trefoil.settings import ModelSource, Settings, read_upstream_keys

pytestmark = pytest.mark.slow

KEY = "sk-upstream-1"
FLAGS = ("--dtype", "float32", "--max-num-seqs", "8", "--kv-cache-memory", "64MiB")
FRONT = ("--max-num-seqs", "4", "--max-num-queued-reqs", "2", "--upstream-timeout", "2")
USER = [{"role": "user", "content": "the cat"}]
BEGIN = {"half a line", "an event of garbage", "a long line", "a line without end", "no last event"} | {
    "an error on the way",
    "silence",
}
"""Those that begin well."""
OWN = re.compile(r"127\.0\.0\.1|169\.254|10\.1\.2\.3|secret|sk-|Traceback|models/a-1|bad/model")
"""What is the other server's own."""


@pytest.fixture(scope="module")
def upstream(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that answers, with a model whose name is a path."""
    log = tmp_path_factory.mktemp("upstream") / "stderr"
    with serving(log, f"models/a-1={folders['a']}", "--api-key", KEY, *FLAGS) as running:
        yield running


@pytest.fixture(scope="module")
def server(upstream: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The one in front, which has no engine."""
    root = tmp_path_factory.mktemp("front")
    (root / "keys").write_text(f"a {KEY}  # ours\nbad sk-secret\n")
    with hostile() as bad:
        models = (f"a={upstream.base_url}", f"bad={bad}/v1#bad/model-1")
        with serving(root / "stderr", *models, "--upstream-api-key-file", str(root / "keys"), *FRONT) as running:
            yield running
        assert not any(running.said(f"event={word}") for word in ("unhandled", "stream_failed"))
        assert not running.said("sk-")


@pytest.fixture
def clients(server: Server, upstream: Server) -> Iterator[tuple[openai.OpenAI, openai.OpenAI]]:
    """The unmodified SDK, asking the front and asking directly."""
    with (
        openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0, timeout=60) as front,
        openai.OpenAI(base_url=upstream.base_url, api_key=KEY, max_retries=0, timeout=60) as direct,
    ):
        yield front, direct


def told(answer: Any) -> Any:
    """What an answer says, without what each has of its own and what the other's pages saved."""
    found = {name: value for name, value in answer.model_dump().items() if name not in ("id", "created", "model")}
    if found.get("usage"):
        found["usage"].pop("prompt_tokens_details", None)
    return found


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
CHATS: list[dict[str, Any]] = [
    {"temperature": 0, "stop": ["t"], "logprobs": True, "top_logprobs": 2},
    {"seed": 3, "n": 2, "extra_body": {"top_k": 5, "ignore_eos": True, "chat_template_kwargs": {}}},
    {"seed": 1, "tools": TOOLS, "tool_choice": "required"},
    {"seed": 1, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
]


@pytest.mark.parametrize("asked", CHATS, ids=lambda asked: ",".join(asked))
def test_chats_are_answered_as_by_the_other_server(clients: tuple[openai.OpenAI, ...], asked: dict[str, Any]) -> None:
    front, direct = (client.chat.completions.create for client in clients)
    asked = {"messages": USER, "max_tokens": 24, **asked}
    whole = front(model="a", **asked)
    assert whole.model == "a"
    assert told(whole) == told(direct(model="models/a-1", **asked))
    asked |= {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(front(model="a", **asked))
    assert {chunk.model for chunk in chunks} == {"a"}
    assert [told(chunk) for chunk in chunks] == [told(chunk) for chunk in direct(model="models/a-1", **asked)]
    assert sum(chunk.usage.completion_tokens for chunk in chunks if chunk.usage) == whole.usage.completion_tokens


def test_completions_and_embeddings_are_too(clients: tuple[openai.OpenAI, ...]) -> None:
    asked = {"prompt": ["the cat", "one"], "max_tokens": 5, "logprobs": 1, "echo": True, "seed": 2}
    front, direct = clients
    assert told(front.completions.create(model="a", **asked)) == told(
        direct.completions.create(model="models/a-1", **asked)
    )
    texts = ["the cat", "a dog"]
    found = front.embeddings.create(model="a", input=texts)
    assert found.model == "a"
    assert found.data == direct.embeddings.create(model="models/a-1", input=texts).data


def test_hugging_faces_client_chats(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    ask = InferenceClient(model=f"{server.url}/v1/chat/completions?model=a", timeout=60).chat_completion
    whole = ask(USER, max_tokens=8, temperature=0).choices[0].message.content
    pieces = [chunk.choices[0].delta.content for chunk in ask(USER, max_tokens=8, temperature=0, stream=True)]
    assert "".join(piece or "" for piece in pieces) == whole


def test_hugging_faces_text_generation_is_made_of_completions(
    server: Server, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    path = "/v1/tasks/text-generation?model="
    ask = InferenceClient(model=f"{server.url}{path}a", timeout=60).text_generation
    direct = InferenceClient(model=f"{upstream.url}{path}models/a-1", token=KEY, timeout=60).text_generation
    options = {"max_new_tokens": 9, "seed": 4, "temperature": 0.7, "stop": ["q"], "return_full_text": True}
    assert ask("the cat", **options) == direct("the cat", **options)
    assert ask("the cat") == direct("the cat")
    texts = ["the cat", "one"]
    several = httpx.post(f"{server.url}{path}a", json={"inputs": texts, "parameters": {"max_new_tokens": 5}}).json()
    assert [own["generated_text"] for (own,) in several] == [ask(text, max_new_tokens=5) for text in texts]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"parameters": {"details": True}}, "parameters.details"),
        ({"stream": True}, "stream"),
        ({"parameters": {"max_new_tokens": 10**6}}, "parameters.max_new_tokens"),
        ({"inputs": "the " * 20_000}, "inputs"),
    ],
)
def test_text_generations_refusals_bear_its_own_names(server: Server, body: dict[str, Any], param: str) -> None:
    answer = httpx.post(f"{server.url}/v1/tasks/text-generation", json={"model": "a", "inputs": "the", **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_stream_comes_token_by_token_and_under_our_request_id(server: Server, upstream: Server) -> None:
    body = endless("a", max_tokens=20, stream=True)
    with httpx.stream("POST", f"{server.url}{PATH}", json=body, headers={"x-request-id": "mine-1"}) as answer:
        assert answer.headers["x-request-id"] == "mine-1"
        events = [line for line in answer.iter_lines() if line]
    assert len(events) > 8  # some tokens are parts of characters
    assert events[-1] == "data: [DONE]"
    eventually(lambda: upstream.said("request_id=mine-1"), within_s=5)
    with streaming(server) as running:
        assert running.next()["choices"]  # of an answer that has no end


@pytest.mark.parametrize(
    ("path", "changed", "param", "code"),
    [
        (PATH, {"max_tokens": -1}, "max_tokens", "invalid_value"),
        (PATH, {"max_tokens": 10**6}, "max_tokens", "context_length_exceeded"),
        ("/v1/chat/completions", {"messages": [*USER, {"role": "robot"}]}, "messages[1].role", "invalid_value"),
    ],
)
def test_refusals_are_the_other_servers(server: Server, path: str, changed: dict, param: str, code: str) -> None:
    answer = httpx.post(f"{server.url}{path}", json={"model": "a", "prompt": "the", **changed})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert (error["param"], error["code"]) == (param, code)
    assert not OWN.search(answer.text)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/tasks/perplexity", {"inputs": "the"}),
        ("/v1/tasks/fill-mask", {"inputs": "[MASK]"}),
        ("/v1/tokenize", {"text": "the"}),
        ("/v1/models/unload", {}),
        ("/v1/models/load", {}),
    ],
)
def test_what_needs_the_model_here_is_refused_by_name(server: Server, path: str, body: dict[str, str]) -> None:
    answer = httpx.post(f"{server.url}{path}", json={"model": "a", **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "wrong_task", "model")
    assert "a" in re.findall(r"\w+", error["message"].removeprefix("another"))


def test_the_front_has_no_engine_and_says_whom_it_serves(server: Server) -> None:
    assert server.engines() == {}
    listed = {one["id"]: one for one in httpx.get(f"{server.url}/v1/models").json()["data"]}
    assert listed["a"]["tasks"] == ["text-generation", "embeddings"]
    assert listed["a"]["max_model_len"] > 10_000
    assert server.metric("upstream_up", model_name="a") == 1
    assert httpx.post(f"{server.url}{PATH}", json={"prompt": "the"}).json()["error"]["code"] == "invalid_value"


def test_clients_that_leave_free_their_place_there(server: Server, upstream: Server) -> None:
    eventually(lambda: server.metric("num_requests_running") == 0, within_s=20)
    with streaming(server):
        assert in_line(upstream) == 1
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}{PATH}", json=endless("a"), timeout=0.5)
    eventually(lambda: in_line(upstream) == 0, within_s=20)
    assert server.metric("num_requests_running", model_name="a") == 0


def in_line(upstream: Server) -> float:
    """Sequences there; its numbers need its key."""
    text = httpx.get(f"{upstream.url}/metrics", headers={"authorization": f"Bearer {KEY}"}).text
    return sum(float(found) for found in re.findall(r"^trefoil:num_requests_\w+{.*} (.*)$", text, re.MULTILINE))


def test_more_than_the_queue_holds_are_refused(server: Server) -> None:
    with ExitStack() as streams:
        for _ in range(6):
            streams.enter_context(streaming(server))
        refused = short(server)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    eventually(lambda: server.metric("num_requests_running", model_name="a") == 0, within_s=20)
    assert short(server).is_success


@pytest.mark.parametrize("how", ANSWERS)
def test_a_server_that_is_no_good_is_told_apart(server: Server, how: str) -> None:
    body = {"model": "bad", "prompt": "the", "user": how, "stream": how in BEGIN}
    answer = httpx.post(f"{server.url}{PATH}", json=body, timeout=20)
    assert not OWN.search(answer.text)
    if how in BEGIN:
        first, *_, last = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
        assert first["choices"][0]["text"] == "ha"
        assert first["model"] == "bad"
    else:
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        last = answer.json()
    assert last["error"]["code"] == "upstream_lost"
    eventually(lambda: server.metric("num_requests_running", model_name="bad") == 0, within_s=5)


def test_an_answer_without_end_takes_little_memory(server: Server) -> None:
    def ask(how: str) -> httpx.Response:
        return httpx.post(f"{server.url}{PATH}", json={"model": "bad", "prompt": "", "user": how}, timeout=60)

    ask("a line without end")
    before = resident(server)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, ["a line without end"] * 8))
    assert resident(server) - before < 160 * 2**20


def resident(server: Server) -> int:
    """The most bytes that the process ever had in memory."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def test_a_server_that_dies_is_told_and_found_again(upstream: Server, log: Path, tmp_path: Path) -> None:
    """It is a front itself: of servers in a row each asks the next."""
    there, model, env = tmp_path / "there", f"a={upstream.base_url}", {"TREFOIL_UPSTREAM_API_KEY": KEY}
    with serving(there, model, env=env) as middle, serving(log, f"a={middle.base_url}") as server:
        with streaming(server) as doomed:
            middle.signal(signal.SIGKILL)
            assert doomed.rest()[-1]["error"]["code"] == "upstream_lost"
        refused = short(server)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "upstream_lost")
        assert int(refused.headers["retry-after"]) >= 1
        ready = httpx.get(f"{server.url}/ready")
        assert (ready.status_code, ready.json()["loading"]) == (503, ["a"])
        assert server.metric("upstream_up") == 0
        with serving(there, model, "--port", str(middle.port), env=env):
            server.wait_ready(within_s=10)
            assert short(server).is_success


def test_a_front_takes_no_address_from_clients_and_says_goodbye(upstream: Server, log: Path) -> None:
    flags = ("--allow-loading", "--shutdown-timeout", "0")
    model, env = f"a={upstream.base_url}", {"TREFOIL_UPSTREAM_API_KEY": KEY}
    with serving(log, model, *flags, env=env) as front, streaming(front) as cut:
        body = {"model": "b", "source": upstream.base_url}
        answer = httpx.post(f"{front.url}/v1/models/load", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "source")
        front.signal(signal.SIGTERM)
        assert "shutting down" in cut.rest()[-1]["error"]["message"]
        assert front.exit_status(within_s=10) == 0


async def test_a_start_is_refused_where_the_model_is_not_told() -> None:
    with hostile() as bad:
        settings = Settings(models=(ModelSource("a", f"{bad}/two"),))
        with pytest.raises(StartRefused, match=f"a: name a model .* as {bad}/two#MODEL; it lists one, other"):
            await Fleet.start(settings, Metrics())


@pytest.mark.parametrize(
    ("source", "words"), [("v1#gone", "bad/model-1"), ("nothing", "/v1"), ("closed", "TREFOIL_UPSTREAM_API_KEY")]
)
async def test_what_cannot_answer_is_unfit(source: str, words: str) -> None:
    with hostile() as bad:
        model = RemoteModel(ModelSource("a", f"{bad}/{source}"), Settings(models=()), Metrics())
        with pytest.raises(UpstreamUnfit, match=words):
            await model.look()
        await model.close()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("http://host/v1", "name="),
        ("a=http://me:sk-secret@host/v1", "TREFOIL_UPSTREAM_API_KEY"),
        ("http://me:sk-secret@host/v1", "name="),
        ("a=http://host/v1?key=1", "without a query"),
        ("a=http://host:port/v1", "port"),
        ("a=http://", "host"),
    ],
)
def test_an_address_is_read_strictly(given: str, words: str) -> None:
    with pytest.raises(InvalidSetting, match=words) as caught:
        ModelSource.parse(given)
    assert "sk-secret" not in str(caught.value)


def test_key_files_name_models_or_none(tmp_path: Path) -> None:
    def read(text: str) -> dict[str, str]:
        (tmp_path / "keys").write_text(text)
        return read_upstream_keys("--upstream-api-key-file", str(tmp_path / "keys"), ["a", "b"])

    assert read("sk-1\nb sk-2  # theirs\n") == {"a": "sk-1", "b": "sk-2"}
    assert read("a sk-1") == {"a": "sk-1"}
    for wrong in ("sk-1\nsk-2", "c sk-1", "a sk-1\na sk-2", "a b sk"):
        with pytest.raises(InvalidSetting, match="NAME KEY") as caught:
            read(wrong)
        assert "sk-" not in str(caught.value)
