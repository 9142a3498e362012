"""Any value in any field: the server answers, in the one error shape where it refuses, and never with a 5xx."""

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GENERATION = (
    *("model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "typical_p", "n", "stop", "stop_token_ids"),
    *("seed", "presence_penalty", "frequency_penalty", "repetition_penalty", "no_repeat_ngram_size", "logit_bias"),
    *("min_tokens", "ignore_eos", "skip_special_tokens", "prompt_logprobs", "priority", "user", "metadata"),
    *("use_beam_search", "beam_width", "length_penalty", "response_format", "structured_outputs", "regex", "logprobs"),
    *("stream_options", "echo", "best_of", "suffix", "tools", "tool_choice", "top_logprobs", "chat_template_kwargs"),
    *("add_generation_prompt", "max_completion_tokens", "functions", "grammar", "choice"),
)
TASK = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "seed", "stop", "truncate", "details")
OWN = {
    "/v1/completions": ("prompt", *GENERATION),
    "/v1/chat/completions": ("messages", *GENERATION),
    "/v1/tasks/text-generation": ("inputs", "parameters", "model"),
    "/v1/tasks/perplexity": ("inputs", "parameters", "model"),
    "/v1/tokenize": ("text", "messages", "add_special_tokens", "add_generation_prompt", "chat_template_kwargs"),
    "/v1/detokenize": ("ids", "skip_special_tokens"),
}
GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "the cat", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 1},
    "/v1/tasks/text-generation": {"inputs": "the cat", "parameters": {"max_new_tokens": 1}},
    "/v1/tasks/perplexity": {"inputs": "the cat sat"},
    "/v1/tokenize": {"text": "the cat"},
    "/v1/detokenize": {"ids": [5]},
}

numbers = st.one_of(
    st.integers(-3, 330),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([2**63, 1e-320, 1e308, -0.0]),
)
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["", "a", "\0", "1", "<|end|>", "{{ 1 }}"]),
)
keys = st.one_of(st.sampled_from(["role", "content", "type", "text", "5", "include_usage", *TASK]), texts)
plain = st.one_of(st.none(), st.booleans(), numbers, texts, st.sampled_from(["user", "assistant", "a"]))
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=8
)


@pytest.mark.parametrize("path", OWN)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.data())
def test_any_value_in_any_field_is_answered(http: httpx.Client, path: str, data: st.DataObject) -> None:
    changed = data.draw(st.dictionaries(st.sampled_from(OWN[path]), values, min_size=1, max_size=3))
    answer = http.post(path, json={"model": "a", **GOOD[path], **changed})
    assert answer.status_code in (200, 400, 404), (changed, answer.text)
    if not answer.is_success:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        param = answer.json()["error"]["param"]
        assert param is None or param.partition("[")[0].partition(".")[0] in {*OWN[path], "max_tokens", "model"}
