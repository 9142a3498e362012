"""The unmodified `openai` SDK, as its users write it: both routes, whole and streamed, and its own exceptions."""

import asyncio

import httpx
import openai
import pytest
from transformers import PreTrainedTokenizerFast

USER = [{"role": "user", "content": "the cat"}]
LONG = "the cat sat on the mat and the dog sat on the cat " * 6


def test_chat_answers_a_conversation(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="a", messages=USER, max_tokens=6, temperature=0)
    (choice,) = answer.choices
    assert answer.object == "chat.completion"
    assert answer.model == "a"
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "be brief"}, *USER],
        [{"role": "developer", "content": "be brief"}, *USER],
        [{"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]}],
        [*USER, {"role": "assistant", "content": "sat"}, {"role": "user", "content": "and?"}],
        [*USER, {"role": "assistant", "content": None}, {"role": "user", "content": ""}],
    ],
    ids=["system", "developer", "parts", "turns", "empty"],
)
def test_chat_takes_every_kind_of_message(client: openai.OpenAI, messages: list) -> None:
    answer = client.chat.completions.create(model="a", messages=messages, max_tokens=2)
    assert answer.usage.prompt_tokens > 0


def test_a_prompt_is_text_or_ids_or_a_list_of_either(client: openai.OpenAI, words: PreTrainedTokenizerFast) -> None:
    def ask(prompt: object) -> list[str]:
        answer = client.completions.create(model="a", prompt=prompt, max_tokens=5, temperature=0)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.text for choice in answer.choices]

    cat, dog = "the cat sat", "one two three"
    (after_cat,), (after_dog,) = ask(cat), ask(dog)
    ids = [words.encode(text, add_special_tokens=False) for text in (cat, dog)]
    assert ask([cat, dog]) == [after_cat, after_dog]
    assert ask(ids[0]) == [after_cat]
    assert ask(ids) == [after_cat, after_dog]


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 7}, {"seed": 3, "n": 3}], ids=str)
def test_a_streamed_chat_is_the_whole_one_in_pieces(client: openai.OpenAI, options: dict) -> None:
    asked = {"model": "a", "messages": USER, "max_tokens": 24, "extra_body": {"ignore_eos": True}, **options}
    whole = client.chat.completions.create(**asked)
    texts, reasons = [""] * len(whole.choices), [None] * len(whole.choices)
    for chunk in client.chat.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        assert chunk.usage is None
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]


@pytest.mark.parametrize("prompt", ["the cat", ["the cat", "the dog", "one"]], ids=["one", "several"])
def test_a_streamed_completion_is_the_whole_one_in_pieces(client: openai.OpenAI, prompt: object) -> None:
    asked = {"model": "b", "prompt": prompt, "max_tokens": 16, "seed": 5, "n": 2, "echo": True, "logprobs": 1}
    whole = client.completions.create(**asked)
    texts, tokens = [""] * len(whole.choices), [[] for _ in whole.choices]
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens if choice.logprobs else []
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]


def test_the_usage_chunk_comes_last_and_has_no_choices(client: openai.OpenAI) -> None:
    options = {"model": "a", "messages": USER, "max_tokens": 4, "temperature": 0}
    whole = client.chat.completions.create(**options)
    *chunks, last = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage == whole.usage
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_the_events_of_a_stream_are_json_lines_and_then_done(http: httpx.Client) -> None:
    body = {"model": "a", "messages": USER, "max_tokens": 3, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


def test_stream_false_is_one_json_body(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"model": "a", "prompt": "the", "max_tokens": 2, "stream": False})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["object"] == "text_completion"


def test_a_connection_serves_many_requests(http: httpx.Client) -> None:
    def local_port() -> int:
        with http.stream("POST", "/v1/completions", json={"model": "a", "prompt": "the", "max_tokens": 1}) as answer:
            answer.read()
            return answer.extensions["network_stream"].get_extra_info("client_addr")[1]

    assert len({local_port() for _ in range(4)}) == 1


def test_n_answers_differ_and_are_numbered(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="a", prompt="the", n=5, seed=1, max_tokens=12, extra_body={"ignore_eos": True}
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3, 4]
    assert len({choice.text for choice in answer.choices}) > 1
    assert answer.usage.completion_tokens == 5 * 12


async def test_many_requests_at_once_are_all_answered(aclient: openai.AsyncOpenAI) -> None:
    asks = (aclient.chat.completions.create(model="ab"[i % 2], messages=USER, max_tokens=8) for i in range(40))
    answers = await asyncio.gather(*asks)
    assert all(answer.choices[0].finish_reason for answer in answers)
    assert len({answer.id for answer in answers}) == 40


async def test_the_asynchronous_client_streams(aclient: openai.AsyncOpenAI) -> None:
    whole = await aclient.completions.create(model="a", prompt="the cat", max_tokens=9, seed=1)
    text = ""
    async for chunk in await aclient.completions.create(model="a", prompt="the cat", max_tokens=9, seed=1, stream=True):
        text += chunk.choices[0].text
    assert text == whole.choices[0].text


def test_a_repeated_prompt_counts_its_cached_tokens(client: openai.OpenAI) -> None:
    first, second = (
        client.completions.create(model="a", prompt="cached? " + LONG, max_tokens=1, temperature=0) for _ in range(2)
    )
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens - 16 <= cached < second.usage.prompt_tokens
    assert first.choices[0].text == second.choices[0].text


def test_chat_without_max_tokens_runs_to_the_end_of_the_context(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="a", messages=USER, seed=1, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == 256


def test_a_completion_without_max_tokens_has_sixteen(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="a", prompt="the", extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16


def test_the_turn_of_the_assistant_is_opened_unless_declined(client: openai.OpenAI) -> None:
    open_, closed = (
        client.chat.completions.create(
            model="a", messages=USER, max_tokens=1, extra_body={"add_generation_prompt": wanted}
        )
        for wanted in (True, False)
    )
    assert open_.usage.prompt_tokens == closed.usage.prompt_tokens + 1


def test_the_callers_request_id_is_kept(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="a", messages=USER, max_tokens=1, extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.parse().choices
    assert client.completions.create(model="a", prompt="the", max_tokens=1)._request_id.startswith("req-")


def test_an_error_carries_the_request_id_too(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="a", prompt="the", temperature=-1, extra_headers={"x-request-id": "mine-2"})
    assert caught.value.request_id == "mine-2"
    assert caught.value.param == "temperature"
    assert caught.value.code == "invalid_value"
    assert caught.value.type == "invalid_request_error"


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=USER)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_models_are_listed_and_shown(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["a", "b"]
    model = client.models.retrieve("a")
    assert (model.id, model.object, model.max_model_len, model.dtype) == ("a", "model", 256, "float32")
    assert model.family == "decoder"
    assert model.architecture == "LlamaForCausalLM"
    assert "text-generation" in model.tasks
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("c")
