"""The client's pure parts: events however they are cut, when to try again, what a call sends, how an answer is read."""

from inspect import isfunction
from itertools import pairwise

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trefoil_client
from trefoil_client import calls
from trefoil_client.client import AsyncTrefoil, Trefoil
from trefoil_client.errors import RateLimited, ServerFailed, Unavailable, UnreadableAnswer
from trefoil_client.retries import Retries
from trefoil_client.sse import Event, EventDecoder

STREAM = (
    ": a comment\n\nevent: metrics\nid: 7\ndata: {\"a\": 1}\r\n\r\n"
    "data: first\rdata: second\r\rdata:half \u2028 line\x85\x0b\n\nid: 8\n\ndata: 你好\n\ndata: cut"
).encode()  # fmt: skip
EVENTS = [
    Event('{"a": 1}', "metrics", "7"),
    Event("first\nsecond", "message", "7"),
    Event("half \u2028 line\x85\x0b", "message", "7"),
    Event("你好", "message", "8"),
]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    decoder = EventDecoder()
    chunks = [STREAM[start:end] for start, end in pairwise(places)]
    assert [event for chunk in chunks for event in decoder.feed(chunk)] == EVENTS


def refused(status: int, after: float | None = None) -> ServerFailed:
    return ServerFailed("x", status=status, retry_after_s=after)


@pytest.mark.parametrize(
    ("error", "is_safe", "wait"),
    [
        (refused(429), False, 1.0),
        (refused(503, 7), False, 7.0),
        (refused(503, 61), False, None),
        (refused(500), False, None),
        (refused(504), True, 1.0),
        (refused(400), True, None),
        (httpx.ConnectError("x"), False, 1.0),
        (httpx.ReadTimeout("x"), False, None),
        (httpx.ReadError("x"), True, 1.0),
    ],
    ids=str,
)
def test_only_what_can_help_is_tried_again(error: Exception, is_safe: bool, wait: float | None) -> None:
    assert Retries(most=2, first_s=0.5).wait(1, error, is_safe=is_safe, chance=1.0) == wait
    assert Retries(most=2).wait(2, error, is_safe=is_safe, chance=1.0) is None


def test_waits_grow_and_are_spread() -> None:
    rule = Retries(most=9, first_s=1.0, longest_s=4.0)
    waits = [rule.wait(attempt, refused(503), is_safe=False, chance=1.0) for attempt in range(4)]
    assert waits == [1.0, 2.0, 4.0, 4.0]
    assert rule.wait(0, refused(503), is_safe=False, chance=0.0) == 0.5


def test_both_clients_have_every_call() -> None:
    own = {name for name, value in vars(calls).items() if isfunction(value) and value.__module__ == calls.__name__}
    public = {name for name in own if not name.startswith("_")} - {"batch"}
    assert len(public) > 50
    assert public <= set(vars(Trefoil)) & set(vars(AsyncTrefoil))
    assert set(trefoil_client.__all__) <= set(vars(trefoil_client))


def test_what_is_not_given_is_not_sent() -> None:
    assert calls.classify("a").body == {"inputs": "a"}
    assert calls.classify("a", "b", top_k=1).body == {
        "inputs": {"text": "a", "text_pair": "b"},
        "parameters": {"top_k": 1},
    }
    assert calls.jobs(limit=3).query == {"limit": "3"}
    assert calls.job("a/../b").path == "/v1/fine_tuning/jobs/a%2F..%2Fb"


LABELS = b'[[{"label": "A", "score": 0.5}]]'
ONE_MASK = b'[{"score": 1, "token": 5, "token_str": "x", "sequence": "x y"}]'


def test_answers_are_read_in_every_shape_that_servers_give() -> None:
    assert calls.classify("a").read(LABELS)[0].label == "A"
    assert calls.classify("a").read(LABELS[1:-1])[0].label == "A"
    assert calls.fill("[MASK]").read(ONE_MASK) == calls.fill("[MASK]").read(b"[%s]" % ONE_MASK)
    assert calls.summarize("a").read(b'[{"summary_text": "b"}]') == "b"
    assert calls.zero_shot("a", ["x"]).read(b'{"labels": ["x"], "scores": [1]}')[0].score == 1
    assert calls.zero_shot("a", ["x"]).read(b'[{"label": "x", "score": 1}]')[0].label == "x"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"data": 5}'])
def test_an_answer_of_another_shape_is_named(content: bytes) -> None:
    with pytest.raises(UnreadableAnswer):
        calls.models().read(content)


def test_a_batch_is_one_request_for_one_task() -> None:
    call = calls.batch([calls.classify("a", top_k=1), calls.classify("b", top_k=1)])
    assert call.body == {"inputs": ["a", "b"], "parameters": {"top_k": 1}}
    both = b"[%s, %s]" % (LABELS[1:-1], LABELS[1:-1])
    assert [labels[0].label for labels in call.read(both)] == ["A", "A"]
    for other in (calls.classify("b", top_k=2), calls.fill("b")):
        with pytest.raises(ValueError, match="one task"):
            calls.batch([calls.classify("a", top_k=1), other])  # type: ignore[list-item]


def answering(*answers: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """A transport that gives these answers in turn, and what it was asked."""
    left, asked = list(answers), []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return httpx.MockTransport(handle), asked


BUSY = {"error": {"message": "full", "type": "rate_limit_error", "param": None, "code": "queue_full"}}


def busy() -> httpx.Response:
    return httpx.Response(429, json=BUSY, headers={"retry-after": "3", "x-request-id": "req-1"})


def test_a_full_queue_is_asked_again_as_late_as_it_says() -> None:
    transport, asked = answering(busy(), httpx.ConnectError("x"), httpx.Response(200, json={"version": "1"}))
    waits: list[float] = []
    with Trefoil("http://here", transport=transport, sleep=waits.append) as client:
        assert client.version() == "1"
    assert len(asked) == 3
    assert waits[0] == 3


def test_the_last_refusal_is_raised_with_all_that_the_server_said() -> None:
    transport, _ = answering(busy(), busy())
    client = Trefoil("http://here", transport=transport, retries=Retries(most=1), sleep=lambda _: None)
    with client, pytest.raises(RateLimited, match=r"full \[request req-1\]") as caught:
        client.complete("a")
    assert (caught.value.code, caught.value.retry_after_s) == ("queue_full", 3)


def test_a_post_that_may_have_been_done_is_not_sent_twice() -> None:
    transport, asked = answering(httpx.ReadTimeout("x"))
    with Trefoil("http://here", transport=transport) as client, pytest.raises(trefoil_client.TimedOut):
        client.create_job("m", "file-1")
    assert len(asked) == 1


async def test_the_asynchronous_client_tries_again_too() -> None:
    transport, asked = answering(busy(), httpx.Response(200, json={"version": "1"}))
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async with AsyncTrefoil("http://here", transport=transport, sleep=sleep) as client:
        assert await client.version() == "1"
    assert (len(asked), waits) == (2, [3])


def test_a_stream_that_breaks_off_is_no_whole_answer() -> None:
    chunk = b'data: {"id": "1", "model": "m", "choices": []}\n\n'
    failed = b'data: {"error": {"message": "gone", "type": "x", "param": null, "code": "engine_lost"}}\n\n'
    transport, _ = answering(httpx.Response(200, content=chunk), httpx.Response(200, content=chunk + failed))
    with Trefoil("http://here", transport=transport) as client:
        with pytest.raises(trefoil_client.ConnectionFailed):
            list(client.stream_chat([]))
        with pytest.raises(Unavailable, match="gone"):
            list(client.stream_chat([]))


def test_the_key_and_the_address_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREFOIL_URL", "http://there/")
    monkeypatch.setenv("TREFOIL_API_KEY", "key-1 key-2")
    transport, asked = answering(httpx.Response(200, json={"version": "1"}))
    with Trefoil(transport=transport) as client:
        client.version()
    assert str(asked[0].url) == "http://there/version"
    assert asked[0].headers["authorization"] == "Bearer key-1"
