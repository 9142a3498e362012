"""Functions that a model may call, or must: told, called, streamed, and told what came of it."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import openai
import pytest

import tiny
from e2e.serving import Server, serving
from trefoil.api.tools import CallReader, Function, Style, Tools, as_text
from trefoil_models.tokenizer import Tokenizer

CHAT = "/v1/chat/completions"
USER: Any = [{"role": "user", "content": "How is the weather in Oslo?"}]
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "day": {"$ref": "#/$defs/day"}},
    "required": ["city", "day"],
    "additionalProperties": False,
    "$defs": {"day": {"type": "integer", "minimum": 1, "maximum": 7}},
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "additionalProperties": False}}},
]
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
QWEN = """{% if tools %}<|im_start|>system
# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Answer in <tool_call></tool_call>.<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls %}
<tool_call>{{ call.function.name }} {{ call.function.arguments.city }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model with room for what is said of the functions."""
    folder = tiny.checkpoint(tmp_path_factory.mktemp("long"), "llama", max_position_embeddings=2048)
    with serving(tmp_path_factory.mktemp("log") / "stderr", f"a={folder}", "--kv-cache-memory", "64MiB") as running:
        yield running


@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_must_call_does(client: openai.OpenAI, seed: int) -> None:
    answer = client.chat.completions.create(
        model="a", messages=USER, tools=TOOLS, tool_choice="required", seed=seed, temperature=1, max_tokens=900
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls
    for call in choice.message.tool_calls:
        assert call.type == "function"
        assert call.id.startswith("call_")
        jsonschema_rs.validate(SCHEMAS[call.function.name], json.loads(call.function.arguments))


def test_the_named_function_is_called_once_and_streamed_alike(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "a", "messages": USER, "tools": TOOLS, "seed": 4, "max_tokens": 100,
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    }  # fmt: skip
    (call,) = client.chat.completions.create(**asked).choices[0].message.tool_calls or []
    deltas = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    (streamed,) = [call for one in deltas for call in one.delta.tool_calls or []]
    assert streamed.index == 0
    assert streamed.function is not None
    assert call.type == "function"
    assert (streamed.function.name, streamed.function.arguments) == ("weather", call.function.arguments)
    assert not any(one.delta.content for one in deltas)
    assert deltas[-1].finish_reason == "tool_calls"


def test_a_model_that_may_call_is_told_of_the_functions(http: httpx.Client) -> None:
    body = {"model": "a", "messages": USER, "max_tokens": 4, "temperature": 0}

    def prompt_len(**more: Any) -> int:
        sent = http.post(CHAT, json={**body, **more}).raise_for_status().json()
        assert sent["choices"][0]["finish_reason"] == "length"
        assert sent["choices"][0]["message"]["content"]
        return int(sent["usage"]["prompt_tokens"])

    assert prompt_len(tools=TOOLS[1:]) > prompt_len() + 20
    assert prompt_len(tools=TOOLS[1:], tool_choice="none") == prompt_len() == prompt_len(tools=[])


def test_a_conversation_goes_on_with_what_came_of_a_call(http: httpx.Client) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
    ]
    sent = {"model": "a", "messages": messages, "max_tokens": 3}
    assert http.post(CHAT, json=sent).is_success
    for wrong in ("{", "[" * 100_000):
        call["function"] = {"name": "weather", "arguments": wrong}
        answer = http.post(CHAT, json=sent)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "messages[1].tool_calls[0].function.arguments"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no list": ({"tools": "x"}, "tools"),
    "no function": ({"tools": [{"type": "function"}]}, "tools[0].function"),
    "name": ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    "twice": ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
    "nothing to choose": ({"tool_choice": "required"}, "tool_choice"),
    "unknown": (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "tool_choice.function.name",
    ),
    "schema": (
        {
            "tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "foo"}}}],
            "tool_choice": "required",
        },
        "tools",
    ),
    "form": ({"tools": TOOLS, "regex": "a"}, "regex"),
    "min_tokens": ({"tools": TOOLS, "tool_choice": "required", "min_tokens": 2}, "min_tokens"),
    "functions": ({"functions": [{"name": "f"}]}, "functions"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_called_is_refused_by_name(http: httpx.Client, case: str) -> None:
    body, param = WRONG[case]
    answer = http.post(CHAT, json={"model": "a", "messages": USER, "max_tokens": 4, **body})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def tools(style: Style) -> Tools:
    return Tools([Function(**tool["function"]) for tool in TOOLS], frozenset(SCHEMAS), style)


TAGGED = 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
ANSWERS = {
    "tags": (Style(), TAGGED, "Let me see.", ["weather"]),
    "two in tags": (Style(), f'{TAGGED}\n<tool_call>{{"name": "stop", "arguments": {{}}}}</tool_call>\n', "Let me see.",
                    ["weather", "stop"]),
    "no JSON in tags": (Style(), "<tool_call>{weather}</tool_call> ", "<tool_call>{weather}</tool_call> ", []),
    "unknown": (Style(), '<tool_call>{"name": "x", "arguments": {}}</tool_call>', None, []),
    "cut short": (Style(), 'So: <tool_call>\n{"name": "wea', None, []),
    "text": (Style(), "5 < 6 <tool and  more \n", None, []),
    "llama": (Style(is_tagged=False, arguments="parameters"), ' {"name": "stop", "parameters": {}}', "", ["stop"]),
    "mistral": (Style(is_tagged=False, is_list=True),
                '[{"name": "stop", "arguments": {}}, {"name": "weather", "arguments": {"day": 1}}]', "",
                ["stop", "weather"]),
    "JSON that is no call": (Style(is_tagged=False), '{"name": "Oslo"}', None, []),
    "deep": (Style(is_tagged=False), "[" * 100_000, None, []),
    "bare text": (Style(is_tagged=False), "It rains. {", None, []),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
def test_calls_are_read_however_the_answer_is_cut(case: str) -> None:
    style, answer, text, names = ANSWERS[case]
    dice = random.Random(1)
    for _ in range(30):
        reader, left = CallReader(tools(style)), answer
        said = []
        while left:
            size = dice.randint(1, 9) if len(answer) < 1000 else 40_000
            said.append(reader.push(left[:size]))
            left = left[size:]
        said.append(reader.push("", is_last=True))
        assert "".join(one.text for one in said) == (answer if text is None else text)
        assert [call["function"]["name"] for one in said for call in one.calls] == names
        assert reader.num_calls == len(names)


def test_an_answer_has_one_call_where_calls_may_not_stand_side_by_side() -> None:
    own = replace(tools(Style()), is_parallel=False)
    reader = CallReader(own)
    said = [reader.push(TAGGED), reader.push(TAGGED), reader.push("", is_last=True)]
    assert [len(one.calls) for one in said] == [1, 0, 0]
    assert reader.num_calls == 1


def test_a_template_that_knows_tools_writes_them_itself(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "llama")
    (folder / "chat_template.jinja").write_text(QWEN, encoding="utf-8")
    tokenizer = Tokenizer.load(folder)
    own = tools(Style.of(tokenizer.chat_template))
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    messages = [*USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert own.noted(messages) == messages
    text = tokenizer.render_chat(messages, extra=own.for_template)
    assert '# Tools\n{"type": "function", "function": {"name": "weather", "description": "Tells it."' in text
    assert "<tool_call>weather Oslo</tool_call>" in text


def test_a_template_that_does_not_is_given_them_as_text() -> None:
    own = tools(Style.of("{{ messages }}"))
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    messages = [
        {"role": "system", "content": "Be kind."},
        as_text({"role": "assistant", "content": "", "tool_calls": [call]}),
        as_text({"role": "tool", "content": "Rain.", "tool_call_id": "1"}),
    ]
    system, called, result = own.noted(messages)
    assert system["content"].startswith("Be kind.\n\n")
    assert '"name": "weather"' in system["content"]
    assert CallReader(own).push(called["content"], is_last=True).calls[0]["function"]["arguments"] == '{"city": "Oslo"}'
    assert (result["role"], "Rain." in result["content"]) == ("user", True)
