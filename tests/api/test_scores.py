"""Log-probabilities in every place where they are asked for, against transformers' log-softmax of the same folder."""

from collections.abc import Callable

import httpx
import openai
import pytest
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import tiny

PROMPT = "the cat sat on the mat and the dog"
USER = [{"role": "user", "content": PROMPT}]
CLOSE = 1e-4
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Oracle = Callable[[str], PreTrainedModel]


def score(oracle: PreTrainedModel, ids: list[int]) -> Tensor:
    """[L, V] log-probabilities of whatever follows each token."""
    return tiny.oracle_logits(oracle, ids).log_softmax(-1)


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_chat_logprobs_are_the_models_own(
    client: openai.OpenAI, oracle: Oracle, words: PreTrainedTokenizerFast, temperature: float
) -> None:
    answer = client.chat.completions.create(
        model="a",
        messages=USER,
        max_tokens=12,
        seed=1,
        temperature=temperature,
        presence_penalty=1.0,
        logprobs=True,
        top_logprobs=20,
        extra_body={"ignore_eos": True, "skip_special_tokens": False},
    )
    content = answer.choices[0].logprobs.content
    ids = words.apply_chat_template(USER, add_generation_prompt=True, return_dict=False)
    assert answer.usage.prompt_tokens == len(ids)
    assert b"".join(bytes(token.bytes) for token in content).decode(errors="replace") == (
        answer.choices[0].message.content
    )
    for token in content:
        row_V = score(oracle("a"), ids)[-1]
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(row_V.topk(20).values.tolist(), abs=CLOSE)
        ids.append(next(i for i in range(tiny.VOCAB) if abs(row_V[i] - token.logprob) < CLOSE))


@pytest.fixture
def letters(words: PreTrainedTokenizerFast) -> dict[str, float]:
    """The logit bias of an answer that is all letters, so that every token is a text of its own."""
    return {str(token): 100 for token in words.convert_tokens_to_ids(list(LETTERS))}


def test_legacy_logprobs_stand_side_by_side(client: openai.OpenAI, letters: dict[str, float]) -> None:
    options = {"prompt": PROMPT, "max_tokens": 10, "seed": 4, "logit_bias": letters}
    choice = client.completions.create(model="b", **options, logprobs=3).choices[0]
    scores = choice.logprobs
    assert "".join(scores.tokens) == choice.text
    assert scores.text_offset == [sum(map(len, scores.tokens[:at])) for at in range(len(scores.tokens))]
    for token, own, top in zip(scores.tokens, scores.token_logprobs, scores.top_logprobs, strict=True):
        assert top[token] == own
        assert 3 <= len(top) <= 4


def test_echo_with_no_tokens_scores_the_prompt(
    client: openai.OpenAI, oracle: Oracle, words: PreTrainedTokenizerFast
) -> None:
    answer = client.completions.create(model="a", prompt=PROMPT, echo=True, max_tokens=0, logprobs=2)
    ids = words.encode(PROMPT)
    rows_LV = score(oracle("a"), ids)
    own = [rows_LV[at, token].item() for at, token in enumerate(ids[1:])]
    (choice,) = answer.choices
    assert choice.text == PROMPT
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(own, abs=CLOSE)
    assert "".join(choice.logprobs.tokens) == PROMPT
    assert choice.finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 0)


def test_echo_puts_the_prompt_before_the_answer(client: openai.OpenAI, letters: dict[str, float]) -> None:
    options = {"model": "a", "prompt": PROMPT, "seed": 1, "max_tokens": 5, "logit_bias": letters}
    alone = client.completions.create(**options).choices[0]
    echoed = client.completions.create(**options, echo=True, logprobs=0).choices[0]
    assert echoed.text == PROMPT + alone.text
    assert "".join(echoed.logprobs.tokens) == echoed.text
    assert [echoed.text[at:][:1] for at in echoed.logprobs.text_offset] == [t[:1] for t in echoed.logprobs.tokens]


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_prompt_logprobs_are_the_same_after_a_prefix_hit(
    client: openai.OpenAI, http: httpx.Client, oracle: Oracle, words: PreTrainedTokenizerFast, route: str
) -> None:
    text = f"{route} " + PROMPT * 5
    prompt = {"prompt": text} if route == "completions" else {"messages": [{"role": "user", "content": text}]}
    body = {"model": "a", "max_tokens": 1, "temperature": 0, **prompt}
    http.post(f"/v1/{route}", json=body)  # leaves the prompt's pages in the prefix cache
    (choice,) = http.post(f"/v1/{route}", json={**body, "prompt_logprobs": 3}).json()["choices"]
    ids = (
        words.encode(text)
        if route == "completions"
        else words.apply_chat_template(prompt["messages"], add_generation_prompt=True, return_dict=False)
    )
    rows_LV = score(oracle("a"), ids)
    first, *entries = choice["prompt_logprobs"]
    assert first is None
    assert len(entries) == len(ids) - 1
    for row_V, token, entry in zip(rows_LV, ids[1:], entries, strict=False):
        assert entry[str(token)]["logprob"] == pytest.approx(row_V[token].item(), abs=CLOSE)
        assert entry[str(token)]["decoded_token"] == words.decode([token])
        assert sorted(e["rank"] for e in entry.values())[:3] == [1, 2, 3]
        assert set(map(str, row_V.topk(3).indices.tolist())) <= set(entry)


def test_prompt_logprobs_reach_the_sdk(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="a", prompt=PROMPT, max_tokens=1, extra_body={"prompt_logprobs": 0})
    first, second, *_ = answer.choices[0].prompt_logprobs
    assert first is None
    assert len(second) == 1


def test_perplexity_is_transformers_loss(http: httpx.Client, oracle: Oracle, words: PreTrainedTokenizerFast) -> None:
    texts = [PROMPT, "one two three"]
    answers = http.post("/v1/tasks/perplexity", json={"inputs": texts, "model": "b"}).json()
    alone = http.post("/v1/tasks/perplexity?model=b", json={"inputs": texts[0]}).json()
    assert alone["nll"] == pytest.approx(answers[0]["nll"], abs=1e-6)
    for text, answer in zip(texts, answers, strict=True):
        inputs = words(text, return_tensors="pt")
        loss = oracle("b")(inputs.input_ids, labels=inputs.input_ids).loss.item()
        assert answer["nll"] == pytest.approx(loss, abs=CLOSE)
        assert answer["perplexity"] == pytest.approx(2.718281828459045**loss, rel=CLOSE)
        assert "".join(answer["tokens"]) == text
        assert answer["token_logprobs"][0] is None
        assert len(answer["token_logprobs"]) == len(answer["tokens"])
