"""/v1/files by the unmodified `openai` SDK, and what it says to uploads that are none."""

import json
import socket

import httpx
import openai
import pytest

from e2e.serving import Server, eventually

GOOD = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}\n'
CUT_OFF = """POST /v1/files HTTP/1.1
content-type: multipart/form-data; boundary=X
content-length: 99999999

--X
content-disposition: form-data; name="file"; filename="a.jsonl"

""".replace("\n", "\r\n")


def upload(client: openai.OpenAI, content: bytes, name: str = "train.jsonl") -> openai.types.FileObject:
    return client.files.create(file=(name, content), purpose="fine-tune")


def test_a_file_is_kept_listed_read_and_deleted(client: openai.OpenAI) -> None:
    one, two = upload(client, GOOD), upload(client, GOOD * 3000, "大.jsonl")
    assert (one.object, one.bytes, one.filename, one.purpose) == ("file", len(GOOD), "train.jsonl", "fine-tune")
    assert (one.status, one.status_details) == ("processed", None)
    assert client.files.retrieve(two.id) == two
    assert client.files.content(two.id).read() == GOOD * 3000
    assert [file.id for file in client.files.list(limit=1)][:2] == [two.id, one.id]
    assert client.files.list(order="asc", after=one.id).data == [two]
    for file in (one, two):
        assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError) as raised:
        client.files.retrieve(one.id)
    assert raised.value.code == "file_not_found"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (GOOD + b"{nonsense\n", "train.jsonl, line 2: no valid JSON"),
        (GOOD * 2 + b'{"messages": []}', "train.jsonl, line 3: 'messages' is an empty list"),
        (b"", "train.jsonl is empty"),
    ],
    ids=["json", "row", "empty"],
)
def test_a_broken_line_is_told_at_once(client: openai.OpenAI, content: bytes, problem: str) -> None:
    file = upload(client, content)
    assert file.status == "error"
    assert file.status_details.startswith(problem)


def test_expiry_is_told_and_kept_within_bounds(client: openai.OpenAI) -> None:
    ask = {"file": ("a.jsonl", GOOD), "purpose": "fine-tune"}
    file = client.files.create(**ask, expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at - file.created_at == 3600
    with pytest.raises(openai.BadRequestError) as raised:
        client.files.create(**ask, expires_after={"anchor": "created_at", "seconds": 60})
    assert raised.value.param == "expires_after.seconds"


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"json": {"purpose": "fine-tune"}}, None),
        ({"data": {"purpose": "fine-tune"}, "files": {"other": ("a", b"")}}, "file"),
        ({"files": {"file": ("a", GOOD)}}, "purpose"),
        ({"data": {"purpose": "vision"}, "files": {"file": ("a", GOOD)}}, "purpose"),
    ],
    ids=["json", "no file", "no purpose", "purpose"],
)
def test_an_upload_that_is_none_is_refused(http: httpx.Client, request_: dict, param: str | None) -> None:
    answer = http.post("/v1/files", **request_)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_broken_form_is_a_400(http: httpx.Client) -> None:
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
        answer = http.post("/v1/files", content=b"nonsense", headers={"content-type": kind})
        assert answer.status_code == 400, answer.text
        assert json.loads(answer.text)["error"]["message"]


@pytest.mark.parametrize(
    ("query", "param"),
    [({"limit": 0}, "limit"), ({"order": "up"}, "order"), ({"after": "file-none"}, "after")],
    ids=str,
)
def test_a_wrong_query_is_named(http: httpx.Client, query: dict, param: str) -> None:
    error = http.get("/v1/files", params=query).json()["error"]
    assert error["param"] == param


def test_an_upload_cut_off_leaves_nothing(server: Server, client: openai.OpenAI) -> None:
    """The session's server holds that nothing went unhandled."""
    before = client.files.list().data
    with socket.create_connection(("127.0.0.1", server.port)) as one:
        one.sendall(CUT_OFF.encode() + GOOD * 100_000)
    eventually(lambda: server.said("path=/v1/files status=499"), within_s=10)
    assert client.files.list().data == before
