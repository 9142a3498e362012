"""What each parameter promises, measured against transformers' greedy search and against the parameter's absence."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import openai
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import tiny

PROMPT = "the cat sat on"
NEVER = list(range(tiny.TOKENIZER_VOCAB, tiny.VOCAB))
"""Ids of the head that no token has."""

Oracle = Callable[[str], PreTrainedModel]


def greedy(model: PreTrainedModel, ids: Sequence[int], length: int, **options: Any) -> list[int]:
    """transformers' own greedy continuation, past any end token."""
    out = model.generate(
        torch.tensor([list(ids)]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=length,
        min_new_tokens=length,
        suppress_tokens=NEVER,
        pad_token_id=0,
        **options,
    )
    return out[0, len(ids) :].tolist()


def complete(client: openai.OpenAI, prompt: object = PROMPT, model: str = "a", **options: Any) -> str:
    """The text of one completion; what the SDK does not know goes into the body."""
    known = {"temperature", "seed", "max_tokens", "stop", "logit_bias", "presence_penalty", "frequency_penalty"}
    extra = {name: value for name, value in options.items() if name not in known}
    rest = {name: value for name, value in options.items() if name in known}
    answer = client.completions.create(model=model, prompt=prompt, extra_body=extra, **{"max_tokens": 16, **rest})
    return answer.choices[0].text


@pytest.mark.parametrize("model", ["a", "b"])
@pytest.mark.parametrize("text", ["the cat sat on", "你好", "x" * 100], ids=["short", "chinese", "long"])
def test_temperature_zero_is_transformers_greedy(
    client: openai.OpenAI, oracle: Oracle, words: PreTrainedTokenizerFast, model: str, text: str
) -> None:
    want = greedy(oracle(model), words.encode(text), 40, eos_token_id=None)
    got = complete(client, text, model, temperature=0, max_tokens=40, ignore_eos=True, skip_special_tokens=False)
    assert got == words.decode(want)


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty_is_transformers(
    client: openai.OpenAI, oracle: Oracle, words: PreTrainedTokenizerFast, penalty: float
) -> None:
    want = greedy(oracle("a"), words.encode(PROMPT), 30, repetition_penalty=penalty, eos_token_id=None)
    got = complete(client, temperature=0, max_tokens=30, repetition_penalty=penalty, ignore_eos=True)
    assert got == words.decode(want, skip_special_tokens=True)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_repeat_ngram_size_is_transformers(
    client: openai.OpenAI, oracle: Oracle, words: PreTrainedTokenizerFast, size: int
) -> None:
    want = greedy(oracle("b"), words.encode(PROMPT), 40, no_repeat_ngram_size=size, eos_token_id=None)
    got = complete(client, model="b", temperature=0, max_tokens=40, no_repeat_ngram_size=size, ignore_eos=True)
    assert got == words.decode(want, skip_special_tokens=True)


def test_top_k_one_is_greedy_at_any_temperature(client: openai.OpenAI) -> None:
    assert complete(client, temperature=2, top_k=1) == complete(client, temperature=0)


@pytest.mark.parametrize(
    "options",
    [{}, {"min_p": 0.1}, {"typical_p": 0.5}, {"top_p": 0.7}, {"top_k": 5}, {"temperature": 0.5}, {"n": 2}],
    ids=str,
)
def test_a_seed_makes_sampling_reproducible(client: openai.OpenAI, options: dict) -> None:
    first, second = (complete(client, seed=11, ignore_eos=True, **options) for _ in range(2))
    others = {complete(client, seed=seed, ignore_eos=True, **options) for seed in range(5)}
    assert first == second
    assert len(others) > 1


async def test_a_seed_holds_beside_twenty_other_requests(aclient: openai.AsyncOpenAI) -> None:
    async def ask(**options: Any) -> str:
        answer = await aclient.completions.create(model="a", max_tokens=30, extra_body={"ignore_eos": True}, **options)
        return answer.choices[0].text

    alone = await ask(prompt=PROMPT, seed=42)
    others = (ask(prompt="one two " * (i % 5 + 1), seed=i) for i in range(20))
    beside, *_ = await asyncio.gather(ask(prompt=PROMPT, seed=42), *others)
    assert beside == alone


def test_logit_bias_forces_and_bans_a_token(client: openai.OpenAI, words: PreTrainedTokenizerFast) -> None:
    (token,) = words.encode("x")
    assert complete(client, temperature=0, logit_bias={str(token): 100}, max_tokens=5) == "xxxxx"
    first = complete(client, temperature=0, max_tokens=1)
    (favourite,) = words.encode(first)
    assert complete(client, temperature=0, max_tokens=1, logit_bias={str(favourite): -100}) != first


@pytest.mark.parametrize(("presence", "frequency"), [(1.5, 0.0), (0.0, 0.8), (-1.0, 0.5), (-2.0, -2.0)])
def test_presence_and_frequency_penalties_are_openais(
    client: openai.OpenAI, oracle: Oracle, words: PreTrainedTokenizerFast, presence: float, frequency: float
) -> None:
    """logit - count * frequency - (count > 0) * presence, over generated tokens."""
    ids, counts_V = words.encode(PROMPT), torch.zeros(tiny.VOCAB)
    want = []
    for _ in range(20):
        row_V = tiny.oracle_logits(oracle("a"), ids + want)[-1]
        row_V = row_V - counts_V * frequency - (counts_V > 0) * presence
        want.append(int(row_V[: tiny.TOKENIZER_VOCAB].argmax()))
        counts_V[want[-1]] += 1
    options = {"presence_penalty": presence, "frequency_penalty": frequency, "temperature": 0, "max_tokens": 20}
    assert complete(client, **options, ignore_eos=True) == words.decode(want, skip_special_tokens=True)


def test_min_tokens_puts_the_end_off(client: openai.OpenAI) -> None:
    end = {"logit_bias": {str(tiny.EOS): 100}, "temperature": 0}
    assert complete(client, **end) == ""
    answer = client.completions.create(model="a", prompt=PROMPT, **end, max_tokens=9, extra_body={"min_tokens": 5})
    assert answer.usage.completion_tokens == 6
    assert answer.choices[0].finish_reason == "stop"


def test_ignore_eos_goes_on_past_the_end(client: openai.OpenAI) -> None:
    end = {"logit_bias": {str(tiny.EOS): 100}, "temperature": 0, "max_tokens": 7}
    answer = client.completions.create(model="a", prompt=PROMPT, **end, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 7
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].text == ""
    shown = complete(client, **end, ignore_eos=True, skip_special_tokens=False)
    assert shown == tiny.SPECIALS[tiny.EOS] * 7


def test_stop_token_ids_end_the_answer_and_do_not_show(client: openai.OpenAI, words: PreTrainedTokenizerFast) -> None:
    (x,) = words.encode("x")
    answer = client.completions.create(
        model="a", prompt=PROMPT, logit_bias={str(x): 100}, temperature=0, extra_body={"stop_token_ids": [x]}
    )
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")
    assert answer.usage.completion_tokens == 1


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_a_stop_string_never_shows(client: openai.OpenAI, count: int, is_streamed: bool) -> None:
    free = complete(client, seed=3, max_tokens=60, ignore_eos=True)
    stops = [free[20:24], *("\n\n\n", "qzqzq", "never ever")][:count]  # the first is several tokens long
    asked = {"model": "a", "prompt": PROMPT, "seed": 3, "max_tokens": 60, "extra_body": {"ignore_eos": True}}
    if is_streamed:
        chunks = list(client.completions.create(**asked, stop=stops if count > 1 else stops[0], stream=True))
        text, reason = "".join(c.choices[0].text for c in chunks), chunks[-1].choices[0].finish_reason
    else:
        choice = client.completions.create(**asked, stop=stops if count > 1 else stops[0]).choices[0]
        text, reason = choice.text, choice.finish_reason
    assert text == free[: free.index(stops[0])]
    assert reason == "stop"


def test_a_stop_string_that_only_begins_is_shown_at_the_end(client: openai.OpenAI) -> None:
    free = complete(client, seed=3, max_tokens=10, ignore_eos=True)
    assert complete(client, seed=3, max_tokens=10, ignore_eos=True, stop=[free[-2:] + "\n never"]) == free


def test_best_of_returns_the_likeliest_of_its_candidates(client: openai.OpenAI) -> None:
    asked = {"model": "a", "prompt": PROMPT, "seed": 2, "max_tokens": 8, "logprobs": 0}
    many = client.completions.create(**asked, n=6, extra_body={"ignore_eos": True})
    best = client.completions.create(**asked, n=2, best_of=6, extra_body={"ignore_eos": True})

    def mean(choice: Any) -> float:
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    ranked = sorted(many.choices, key=mean, reverse=True)
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert best.usage.completion_tokens == 6 * 8


def test_the_models_own_generation_config_is_the_default(client: openai.OpenAI) -> None:
    """Silent requests sample: two in a row differ, as OpenAI's default temperature of 1 says."""
    assert len({complete(client, max_tokens=20, ignore_eos=True) for _ in range(4)}) > 1
