"""Both clients against a real server: what they read is what the server means."""

import math
from collections.abc import Iterator

import pytest

from e2e.serving import Server
from trefoil_client import AsyncTrefoil, InvalidRequest, NotFound, Trefoil, calls

MODEL = "demo-decoder"
USER = [{"role": "user", "content": "the cat"}]


@pytest.fixture
def client(demo: Server) -> Iterator[Trefoil]:
    with Trefoil(demo.url, api_key="none") as own:
        yield own


def test_a_stream_says_what_the_whole_answer_says(client: Trefoil) -> None:
    whole = client.chat(USER, model=MODEL, max_tokens=8, temperature=0, logprobs=True, top_logprobs=2)
    chunks = list(client.stream_chat(USER, model=MODEL, max_tokens=8, temperature=0))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert chunks[-1].usage == whole.usage
    logprobs = whole.choices[0].logprobs
    assert logprobs
    assert logprobs.content
    assert all(len(token.top_logprobs) == 2 for token in logprobs.content)


def test_completions_are_continued_and_scored(client: Trefoil) -> None:
    both = client.complete(["the", "a cat"], model=MODEL, max_tokens=3, temperature=0, ignore_eos=True)
    assert [choice.index for choice in both.choices] == [0, 1]
    streamed = client.stream_complete("the", model=MODEL, max_tokens=3, temperature=0, ignore_eos=True)
    assert "".join(chunk.text for chunk in streamed) == both.text
    scored = client.complete("the cat", model=MODEL, max_tokens=0, echo=True, logprobs=1)
    assert scored.choices[0].logprobs
    assert scored.choices[0].logprobs.token_logprobs[0] is None


def test_leaving_a_stream_frees_its_place(client: Trefoil, demo: Server) -> None:
    with client.stream_complete("the", model=MODEL, max_tokens=200, ignore_eos=True) as stream:
        next(stream)
    assert client.version()
    assert demo.metric("num_requests_running", model_name=MODEL) in (0, 1)


def test_tasks_speak_the_clients_types(client: Trefoil) -> None:
    text = client.generate("the cat", model=MODEL, max_new_tokens=4)
    *_, last = client.stream_generate("the cat", model=MODEL, max_new_tokens=4)
    assert last.generated_text == text
    score = client.perplexity("the cat sat", model=MODEL)
    assert score.perplexity == pytest.approx(math.exp(score.nll))
    two = client.send(calls.batch([calls.perplexity(text, model=MODEL) for text in ("the cat sat", "a dog")]))
    assert two[0].nll == pytest.approx(score.nll, rel=1e-5)
    assert client.send(calls.batch([calls.generate(t, model=MODEL, max_new_tokens=2) for t in "ab"]))


def test_tokens_go_there_and_back(client: Trefoil) -> None:
    tokens = client.tokenize("the cat sat", model=MODEL)
    assert tokens.count == len(tokens.ids)
    assert client.detokenize(tokens.ids, model=MODEL) == "the cat sat"
    assert client.tokenize(messages=USER, model=MODEL).count > 2


def test_the_server_is_described(client: Trefoil) -> None:
    assert MODEL in [model.id for model in client.models()]
    assert client.model(MODEL).family == "decoder"
    assert client.is_alive()
    assert client.ready().status == "ready"
    assert "trefoil:num_requests_running" in client.metrics()


def test_errors_carry_the_field_and_the_request(client: Trefoil) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.chat(USER, model=MODEL, temperature=9)
    assert (caught.value.param, caught.value.status) == ("temperature", 400)
    assert caught.value.request_id
    with pytest.raises(NotFound):
        client.model("nobody/here")
    with pytest.raises(InvalidRequest):
        next(client.stream_chat(USER, model=MODEL, temperature=9))


async def test_the_asynchronous_client_reads_the_same(demo: Server, client: Trefoil) -> None:
    async with AsyncTrefoil(demo.url, api_key="none") as own:
        answer = await own.chat(USER, model=MODEL, max_tokens=8, temperature=0)
        assert answer.text == client.chat(USER, model=MODEL, max_tokens=8, temperature=0).text
        stream = await own.stream_chat(USER, model=MODEL, max_tokens=8, temperature=0)
        assert "".join([chunk.text async for chunk in stream]) == answer.text
