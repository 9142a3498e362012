"""Answers that must look like something: JSON of a schema, a regular expression, choices, rules."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import jsonschema_rs
import openai
import pytest
import torch
from huggingface_hub import InferenceClient
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from e2e.serving import Server

PROMPT = "the cat sat on"
USER: Any = [{"role": "user", "content": PROMPT}]
COMPLETIONS = "/v1/completions"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "日本"]}, "minItems": 1, "maxItems": 3},
        "home": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/home"}]},
    },
    "required": ["name", "age", "tags", "home"],
    "additionalProperties": False,
    "$defs": {
        "home": {
            "type": "object",
            "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["zip"],
            "additionalProperties": False,
        }
    },
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
SUMS = 'root ::= term (("+" | "-") term){1,3}\nterm ::= [0-9]{1,2} | "(" [a-c] ")"'


@pytest.mark.parametrize("model", ["a", "b"])
@pytest.mark.parametrize("seed", range(3))
def test_a_schema_is_kept_by_a_model_that_knows_nothing(client: openai.OpenAI, model: str, seed: int) -> None:
    answer = client.chat.completions.create(
        model=model, messages=USER, response_format=FORMAT, temperature=1, seed=seed, max_tokens=120
    )
    assert answer.choices[0].finish_reason == "stop"
    jsonschema_rs.validate(PERSON, json.loads(answer.choices[0].message.content or ""))


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "a", "messages": USER, "response_format": FORMAT, "seed": 5, "max_tokens": 120}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    stream = client.chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole


def test_a_schema_from_hugging_faces_client_is_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends another field than it was given, and the name of no model where it knows an address only."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the server is on loopback
    chat = InferenceClient(model=f"{server.url}/v1/chat/completions?model=a", timeout=60).chat_completion
    answer = chat(USER, response_format=FORMAT, temperature=1, seed=3, max_tokens=120)
    jsonschema_rs.validate(PERSON, json.loads(answer.choices[0].message.content or ""))


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"type": "json_object", "json_schema": {"name": "a"}}, "json_schema"),
        ({"type": "text", "value": {}}, "value"),
        ({"type": "json_object", "schema": {}}, "schema"),
        ({"type": "json_object", "value": {"type": "nothing"}}, "value"),
    ],
)
def test_a_format_is_followed_or_refused(http: httpx.Client, asked: dict[str, Any], param: str) -> None:
    answer = http.post(COMPLETIONS, json={"model": "a", "prompt": PROMPT, "response_format": asked})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, f"response_format.{param}")


LINKS = [{"type": "array", "items": {"$ref": f"#/$defs/{n + 1}"}} for n in range(3000)]
DEEP_SCHEMA = {"$ref": "#/$defs/0", "$defs": {**{str(n): link for n, link in enumerate(LINKS)}, "3000": {}}}


def deep_rules(depth: int) -> str:
    return "start: r0\n" + "".join(f'r{n}: "a" r{n + 1}\n' for n in range(depth)) + f'r{depth}: "b"'


DEEP_RULES = deep_rules(9000)
MISSING = "start: " + "x? " * 1000 + "\nx: " + " | ".join(f"y{n}" for n in range(1000))
MISSING += "".join(f'\ny{n}: "a{n}"? "b"' for n in range(1000))


@pytest.mark.parametrize(
    "asked", [{"structured_outputs": {"json": DEEP_SCHEMA}}, {"grammar": DEEP_RULES}], ids=["schema", "rules"]
)
def test_a_form_however_deep_ends_no_process(http: httpx.Client, asked: dict[str, Any]) -> None:
    """The library descends a level of stack for each before it counts them, and 2000 were the end of the server."""
    sent = {"model": "a", "prompt": PROMPT, "max_tokens": 3}
    answer = http.post(COMPLETIONS, json={**sent, **asked})
    assert answer.status_code == 400, answer.text
    assert re.search("too big .limit for this grammar: |more than 3000", answer.json()["error"]["message"])
    assert http.post(COMPLETIONS, json={**sent, "grammar": deep_rules(600)}).status_code == 200
    rules = "\n".join(f'r{n} ::= "a"' for n in range(2000))
    refused = http.post(COMPLETIONS, json={"model": "a", "prompt": PROMPT, "grammar": f"root ::= r0\n{rules}"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "grammar")


def test_any_object_is_an_object_as_far_as_it_goes(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="a", messages=USER, response_format={"type": "json_object"}, seed=1, max_tokens=60
    )
    text = answer.choices[0].message.content or ""
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


MARKS = "".join(map(chr, range(1, 128)))
WANTED: dict[str, tuple[dict[str, Any], str]] = {
    "regex": ({"regex": r"[A-Z][a-z]{2,9} \d{4}"}, r"[A-Z][a-z]{2,9} \d{4}"),
    "choice": ({"choice": ["yes, of course", "no", "日本\n"]}, "yes, of course|no|日本\n"),
    "choice of marks": ({"choice": [MARKS, "/" + MARKS]}, f"/?{re.escape(MARKS)}"),
    "many choices": ({"choice": [f"n{n:05}" for n in range(10_000)]}, r"n\d{5}"),
    "grammar": ({"grammar": SUMS}, r"(\d{1,2}|\([a-c]\))([+-](\d{1,2}|\([a-c]\))){1,3}"),
    "outputs": ({"structured_outputs": {"regex": "(ab)+c"}}, "(ab)+c"),
    "outputs-json": ({"structured_outputs": {"json": '{"enum": [1, "aa", "bb", 22]}'}}, '1|22|"(aa|bb)"'),
}


@pytest.mark.parametrize("asked", WANTED)
def test_each_way_of_saying_it_is_kept(http: httpx.Client, asked: str) -> None:
    body, pattern = WANTED[asked]
    sent = {"model": "a", "prompt": PROMPT, "n": 4, "seed": 3, "temperature": 1.5, "max_tokens": 200, **body}
    choices = http.post(COMPLETIONS, json=sent).raise_for_status().json()["choices"]
    for choice in choices:
        assert choice["finish_reason"] == "stop"
        assert re.fullmatch(pattern, choice["text"]), choice["text"]
    assert asked != "regex" or len({choice["text"] for choice in choices}) > 1


def test_the_likeliest_of_what_is_allowed_is_taken(
    client: openai.OpenAI, oracle: Callable[[str], PreTrainedModel], words: PreTrainedTokenizerFast
) -> None:
    """Against transformers, told for each token by hand what may follow."""
    length, ids = 12, words.encode(PROMPT)
    spelled = {i: words.decode([i]) for i in range(len(words))}
    letters = {i: text for i, text in spelled.items() if re.fullmatch("[aeht]+", text)}

    def allowed(_: int, so_far: torch.Tensor) -> Sequence[int]:
        left = length - len(words.decode(so_far[len(ids) :]))
        return [i for i, text in letters.items() if len(text) <= left] if left else [words.eos_token_id]

    model = oracle("a")
    out = model.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=20, prefix_allowed_tokens_fn=allowed, pad_token_id=0,
        eos_token_id=words.eos_token_id,
    )  # fmt: skip
    want = words.decode(out[0, len(ids) :], skip_special_tokens=True)
    asked = {"regex": "[aeht]{12}"}
    got = client.completions.create(model="a", prompt=PROMPT, temperature=0, max_tokens=20, extra_body=asked)
    assert got.choices[0].text == want
    assert len(want) == length


def test_who_is_free_beside_those_who_are_not_is_as_alone(http: httpx.Client) -> None:
    free = {"model": "a", "prompt": PROMPT, "temperature": 0, "max_tokens": 24, "ignore_eos": True}
    alone = http.post(COMPLETIONS, json=free).json()["choices"][0]["text"]
    both = {"model": "a", "prompt": [PROMPT] * 3, "max_tokens": 60, "regex": "[a-z ]{40}", "stream": True}
    with http.stream("POST", COMPLETIONS, json=both) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert http.post(COMPLETIONS, json=free).json()["choices"][0]["text"] == alone
        assert sum('"finish_reason":"stop"' in line for line in lines) == 3


def test_an_answer_cut_short_says_so(http: httpx.Client) -> None:
    sent = {"model": "a", "prompt": PROMPT, "max_tokens": 3, "regex": "[a-z]{200}"}
    assert http.post(COMPLETIONS, json=sent).json()["choices"][0]["finish_reason"] == "length"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "type": ({"response_format": {"type": "yaml"}}, "response_format.type"),
    "no schema": ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    "bad schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "foo"}}}},
        "response_format.json_schema.schema",
    ),
    "unknown keyword": (
        {"structured_outputs": {"json": {"type": "array", "uniqueItems": True}}},
        "structured_outputs.json",
    ),
    "schema in text": ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    "deep": ({"structured_outputs": {"json": "[" * 100_000}}, "structured_outputs.json"),
    "unknown way": ({"structured_outputs": {"xml": "a"}}, "structured_outputs.xml"),
    "remote": ({"structured_outputs": {"json": {"$ref": "http://127.0.0.1/x"}}}, "structured_outputs.json"),
    "regex": ({"regex": "(a"}, "regex"),
    "look-around": ({"regex": "a(?=b)"}, "regex"),
    "choice": ({"choice": []}, "choice"),
    "empty choice": ({"choice": [""]}, "choice[0]"),
    "grammar": ({"grammar": "root ::= undefined"}, "grammar"),
    "no root": ({"grammar": 'x ::= "a"'}, "grammar"),
    "long": ({"grammar": 'root ::= "' + "a" * 300_000 + '"'}, "grammar"),
    "parts that may all be missing": ({"grammar": MISSING}, "grammar"),  # a token took minutes
    "expression": ({"regex": "a?" * 10_000}, "regex"),
    "two demands": ({"regex": "a", "choice": ["a"]}, "choice"),
    "beams": ({"regex": "a", "use_beam_search": True}, "use_beam_search"),
    "min_tokens": ({"regex": "a", "min_tokens": 3}, "min_tokens"),
    "ignore_eos": ({"regex": "a", "ignore_eos": True}, "ignore_eos"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_kept_is_refused_by_name(http: httpx.Client, case: str) -> None:
    body, param = WRONG[case]
    answer = http.post(COMPLETIONS, json={"model": "a", "prompt": PROMPT, "max_tokens": 4, **body})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["message"]


def test_rules_that_lead_nowhere_fail_alone(http: httpx.Client) -> None:
    answer = http.post(COMPLETIONS, json={"model": "a", "prompt": PROMPT, "n": 3, "grammar": "root ::= root"})
    assert answer.status_code == 400
    assert "grammar" in answer.json()["error"]["message"]
    assert http.post(COMPLETIONS, json={"model": "a", "prompt": PROMPT, "max_tokens": 2}).is_success
