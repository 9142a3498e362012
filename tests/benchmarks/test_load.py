"""The load generator believes only whole answers."""

import httpx
import orjson
import pytest

from load import HEADERS, Answer, ask, main, told
from report import Record, Run
from workload import Request

REQUEST = Request([5, 6], 2, 0.0)
DONE = b"data: [DONE]\n\n"


def chunk(text: str, ending: str | None = None) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"text": text, "finish_reason": ending}], "usage": None}) + b"\n\n"


def usage(count: int) -> bytes:
    return b"data: " + orjson.dumps({"choices": [], "usage": {"completion_tokens": count}}) + b"\n\n"


def record(*parts: bytes, ignore_eos: bool = True) -> Record:
    """What becomes of an answer whose parts come a second apart."""
    answer = Answer(Record(len(REQUEST.ids), 0.0))
    for second, part in enumerate(parts, start=1):
        answer.take(part, float(second))
    return answer.finish(REQUEST, ignore_eos=ignore_eos)


def test_a_whole_answer_is_clocked_by_its_pieces_of_text() -> None:
    got = record(chunk("a"), b": heartbeat\n\n", chunk("b"), chunk("", "length"), usage(2) + DONE)
    assert got == Record(2, 0.0, [1.0, 3.0], num_tokens=2, text="ab")


def test_an_event_split_over_parts_is_one_event() -> None:
    first = chunk("é")
    got = record(first[:9], first[9:40], first[40:] + chunk("b", "length"), usage(2), DONE)
    assert (got.text, got.token_times, got.error) == ("éb", [3.0, 3.0], None)


def test_a_first_event_without_text_is_the_first_token() -> None:
    got = record(chunk(""), chunk("é"), chunk("", "length"), usage(2), DONE)
    assert got.token_times == [1.0, 2.0]


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ((), "ended early"),
        ((chunk("a"), chunk("b", "length"), usage(2)), "ended early"),
        ((chunk("a"), chunk("b"), usage(2), DONE), "ended early"),
        ((chunk("a", "length"), DONE), "no usage"),
        ((chunk("a", "stop"), usage(1), DONE), "1 tokens where 2"),
        ((chunk("a"), b'data: {"error":{"message":"engine gone"}}\n\n'), "engine gone"),
        ((b"data: {oops\n\n", DONE), "no JSON"),
    ],
    ids=["nothing", "no-done", "no-ending", "no-usage", "short", "error-event", "no-json"],
)
def test_anything_less_is_a_failure(parts: tuple[bytes, ...], why: str) -> None:
    assert why in str(record(*parts).error)


def test_an_answer_may_end_early_where_the_end_token_counts() -> None:
    assert record(chunk("a", "stop"), usage(1), DONE, ignore_eos=False).error is None


async def test_a_refusal_is_a_failure_with_its_words() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(429, text="too many"))
    async with httpx.AsyncClient(transport=transport, base_url="http://server", headers=HEADERS) as client:
        got = await ask(client, "m", REQUEST, ignore_eos=True)
    assert got.error == "status 429: too many"
    assert "Failed requests:                         1" in told(Run([got], 1.0, 1))


async def test_a_lost_connection_is_a_failure() -> None:
    def lost(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with httpx.AsyncClient(transport=httpx.MockTransport(lost), base_url="http://server") as client:
        got = await ask(client, "m", REQUEST, ignore_eos=True)
    assert got.error == "ConnectError: refused"


def test_the_command_tells_what_failed_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["load.py", "--url", "http://127.0.0.1:1", "--model", "m", "--num-prompts", "1", "--num-warmups", "0"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "failed: ConnectError" in capsys.readouterr().out
