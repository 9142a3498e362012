"""Models put away and brought back while the server runs, with the adapters on them."""

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import tiny
from e2e.serving import Server, eventually, serving
from trefoil_models import checkpoint
from trefoil_models.adapter_files import save_adapter
from trefoil_models.lora import LoraShape, attach

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two bases and an adapter on the first."""
    root = tmp_path_factory.mktemp("loading")
    bases = {name: tiny.checkpoint(root / name, "llama", seed=seed) for seed, name in enumerate("ab")}
    flags = [
        *(f"{name}={folder}" for name, folder in bases.items()),
        f"--lora=leaf={adapter(root / 'leaf', bases['a'])}",
    ]
    with serving(root / "log", *flags, "--kv-cache-memory", "16MiB", "--allow-loading") as running:
        yield running
        assert not running.said("event=unhandled")


def adapter(folder: Path, base: Path) -> Path:
    model, shape = checkpoint.load(base), LoraShape(r=2)
    for layer in attach(model, shape, seed=0).values():
        layer.lora_up.data.normal_()
    folder.mkdir()
    save_adapter(model, folder, shape, base="a")
    return folder


def say(server: Server, model: str | None = None) -> httpx.Response:
    body = {"prompt": "the cat", "max_tokens": 8, "temperature": 0, **({"model": model} if model else {})}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)


def ask(server: Server, verb: str, model: str, **more: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/models/{verb}", json={"model": model, **more}, timeout=60)


def names(server: Server) -> set[str]:
    return {model["id"] for model in httpx.get(f"{server.url}/v1/models", timeout=60).json()["data"]}


def test_an_unloaded_base_leaves_with_its_adapters_and_both_come_back(server: Server) -> None:
    before = [say(server, model).json()["choices"][0]["text"] for model in ("a", "leaf")]
    assert before[0] != before[1]
    assert ask(server, "unload", "a").json() == {"id": "a", "object": "model", "loaded": False}
    assert names(server) == set(server.engines()) == {"b"}
    assert say(server).json()["model"] == "b", "the only one there is"
    for model in ("a", "leaf"):
        refused = say(server, model)
        assert (refused.status_code, refused.json()["error"]["param"]) == (404, "model")
        assert "POST /v1/models/load" in refused.json()["error"]["message"]
    assert ask(server, "load", "leaf").status_code == 409
    told = ask(server, "load", "a").json()
    assert (told["id"], told["family"]) == ("a", "decoder")
    assert ask(server, "load", "a").json() == told
    assert [say(server, model).json()["choices"][0]["text"] for model in ("a", "leaf")] == before


def test_an_adapter_goes_alone(server: Server) -> None:
    before = say(server, "leaf").json()["choices"]
    engines = server.engines()
    ask(server, "unload", "leaf")
    assert names(server) == {"a", "b"}
    assert say(server, "a").status_code == 200
    ask(server, "load", "leaf")
    assert say(server, "leaf").json()["choices"] == before
    assert server.engines() == engines


def test_a_model_unloaded_while_it_is_loaded_stays_away(server: Server) -> None:
    ask(server, "unload", "b")
    answers: list[httpx.Response] = []
    loading = threading.Thread(target=lambda: answers.append(ask(server, "load", "b")))
    loading.start()
    eventually(lambda: "b" in names(server), within_s=30)
    ask(server, "unload", "b")
    loading.join()
    assert answers[0].status_code in (200, 409)  # it may have been there just before
    assert "b" not in names(server) | set(server.engines())
    assert ask(server, "load", "b").status_code == 200
    assert say(server, "b").status_code == 200


def test_another_folder_is_served_by_a_name_of_its_own(server: Server, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "other", "gpt2")
    assert ask(server, "load", "b", source=str(folder)).status_code == 409
    assert ask(server, "load", "other", source=str(folder)).json()["architecture"] == "GPT2LMHeadModel"
    assert say(server, "other").status_code == 200
    refused = ask(server, "load", "third", source=str(tmp_path / "none"))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "source")
    assert "third" not in names(server)


def test_a_broken_chat_template_is_told_in_the_log_and_to_chats_alone(server: Server, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "broken", "llama")
    (folder / "chat_template.jinja").write_text("{% for message in messages %}\n{{ message.content }\n{% endfor %}\n")
    assert ask(server, "load", "broken", source=str(folder)).status_code == 200
    (told,) = [line for line in server.log.read_text().splitlines() if "event=broken_chat_template" in line]
    assert "model=broken" in told
    assert "line 2: unexpected '}'" in told
    body = {"model": "broken", "messages": [{"role": "user", "content": "hi"}]}
    for path in ("chat/completions", "tokenize"):
        refused = httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60)
        error = refused.json()["error"]
        assert (refused.status_code, error["param"], error["code"]) == (400, "model", "wrong_task")
        assert "line 2: unexpected '}'" in error["message"]
    assert say(server, "broken").status_code == 200
    ask(server, "unload", "broken")


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_a_name_that_nobody_has_is_told(server: Server, verb: str) -> None:
    refused = ask(server, verb, "none")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
