"""Functions that a model may call: how they are told to it, and how its calls are read out of what it writes.

A template that knows tools writes them in the words its model was trained on; of those, two ways to call are read: JSON
in `<tool_call>` tags (Qwen, Hermes) and an answer that is JSON itself (LLaMA 3, Mistral). Any other model is told of
the tags in its system message.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from trefoil.api.grammar import WHITE_SPACE, Schema, Wanted
from trefoil.api.text import Text
from trefoil.api.text_stream import overlap
from trefoil.errors import InvalidRequest

OPENING, CLOSING = "<tool_call>", "</tool_call>"
MOST_FORCED = 8
"""Calls in one answer that has to call."""
ANY_ARGUMENTS: Schema = {"type": "object"}

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(BaseModel):
    model_config = ConfigDict(strict=True)

    name: Name
    description: Text | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["function"]
    function: Function


class NamedFunction(BaseModel):
    model_config = ConfigDict(strict=True)

    name: Text


class NamedTool(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["function"]
    function: NamedFunction


class CalledFunction(BaseModel):
    model_config = ConfigDict(strict=True)

    name: Text
    arguments: Text


class ToolCall(BaseModel):
    """A call in a conversation, as an earlier answer gave it."""

    model_config = ConfigDict(strict=True)

    id: Text | None = None
    type: Literal["function"] = "function"
    function: CalledFunction

    def rendered(self, param: str) -> dict[str, Any]:
        """As templates know it, the arguments read. Raises InvalidRequest."""
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError) as error:
            param = f"{param}.function.arguments"
            raise InvalidRequest(f"{param}: no valid JSON: {error}", param=param) from error
        return {"id": self.id, "type": self.type, "function": {"name": self.function.name, "arguments": arguments}}


@dataclass(frozen=True, slots=True)
class Style:
    """How a model calls: in tags or bare, and what it names the arguments."""

    is_tagged: bool = True
    arguments: str = "arguments"
    is_list: bool = False
    is_told_by_us: bool = False

    @classmethod
    def of(cls, template: str | None) -> "Style":
        """By what the folder's chat template writes."""
        if template is None or "tools" not in template:
            return cls(is_told_by_us=True)
        if OPENING in template:
            return cls()
        if "[TOOL_CALLS]" in template:
            return cls(is_tagged=False, is_list=True)
        if '"parameters"' in template:
            return cls(is_tagged=False, arguments="parameters")
        return cls(is_told_by_us=True)


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions of one request. `names`: those that may be called; with `is_forced` one of them must be."""

    functions: Sequence[Function]
    names: frozenset[str]
    style: Style
    is_forced: bool = False
    is_parallel: bool = True

    @property
    def for_template(self) -> dict[str, Any]:
        """What a template that knows tools takes besides the messages."""
        return {} if self.style.is_told_by_us else {"tools": self._listed()}

    def noted(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The conversation with the functions told of in its system message, where the template knows no tools."""
        if not self.style.is_told_by_us:
            return list(messages)
        system = [message["content"] for message in messages[:1] if message["role"] == "system"]
        notice = {"role": "system", "content": "\n\n".join([*system, self._notice()])}
        return [notice, *messages[len(system) :]]

    def wanted(self) -> Wanted | None:
        """The form of an answer that has to call."""
        return Wanted("tools", self._rules) if self.is_forced else None

    def _listed(self) -> list[dict[str, Any]]:
        return [
            {"type": "function", "function": function.model_dump(exclude_none=True, exclude={"strict"})}
            for function in self.functions
        ]

    def _notice(self) -> str:
        known = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in self._listed())
        return (
            f"You may call these functions:\n{known}\n"
            f'To call one, write\n{OPENING}\n{{"name": "its name", "arguments": {{...}}}}\n{CLOSING}'
        )

    def _rules(self) -> str:
        """Each function's arguments by a schema of their own, whose references begin at its own root."""
        most = MOST_FORCED if self.is_parallel and (self.style.is_tagged or self.style.is_list) else 1
        callable_ones = [function for function in self.functions if function.name in self.names]
        rules = [f"call: {' | '.join(f'f{n}' for n in range(len(callable_ones)))}"]
        for n, function in enumerate(callable_ones):
            schema = {**(function.parameters or ANY_ARGUMENTS), "x-guidance": {"whitespace_pattern": WHITE_SPACE}}
            before = f'{{"name": {json.dumps(function.name)}, "{self.style.arguments}": '
            rules.append(f'f{n}: {json.dumps(before)} %json {json.dumps(schema)} "}}"')
        if self.style.is_tagged:
            rules.append(f"tagged: {json.dumps(OPENING + chr(10))} call {json.dumps(chr(10) + CLOSING)}")
            start = f"start: {_list('tagged', chr(10), most)}"
        elif self.style.is_list:
            start = f'start: "[" {_list("call", ", ", most)} "]"'
        else:
            start = "start: call"
        return "\n".join([start, *rules])


def _list(item: str, between: str, most: int) -> str:
    """One of the item or more, as Lark writes it."""
    return item if most == 1 else f"{item} ({json.dumps(between)} {item}){{0,{most - 1}}}"


def as_text(message: dict[str, Any]) -> dict[str, Any]:
    """A call or a result for a template that knows neither."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if "tool_calls" not in message:
        return message
    calls = [
        f"{OPENING}\n{json.dumps(call['function'], ensure_ascii=False)}\n{CLOSING}" for call in message["tool_calls"]
    ]
    said = [message["content"]] if message["content"] else []
    return {"role": message["role"], "content": "\n".join([*said, *calls])}


@dataclass(frozen=True, slots=True)
class Said:
    """What an answer says next: text, and whole calls."""

    text: str = ""
    calls: Sequence[dict[str, Any]] = ()


class CallReader:
    """Tells an answer's calls from its text as it comes. What turns out to be no call is text: nothing is lost.

    Where calls may not stand side by side, the first is the answer's.
    """

    def __init__(self, tools: Tools | None) -> None:
        self._tools = tools
        self._held = ""
        self._is_text = tools is None
        self.num_calls = 0

    def push(self, text: str, *, is_last: bool = False) -> Said:
        """What is certain now; at the end, all."""
        self._held += text
        said = Said(self._let_go(len(self._held))) if self._is_text else self._sorted()
        said = self._ended(said) if is_last else said
        if self._tools is not None and not self._tools.is_parallel:
            said = Said(said.text, said.calls[: 0 if self.num_calls else 1])
        self.num_calls += len(said.calls)
        return said

    def _sorted(self) -> Said:
        assert self._tools is not None
        return self._tagged() if self._tools.style.is_tagged else self._bare()

    def _ended(self, said: Said) -> Said:
        """With what was held back: nothing follows any more."""
        held = self._let_go(len(self._held))
        if (self.num_calls or said.calls) and not held.strip():
            return said
        calls = None if self._tools is None or self._tools.style.is_tagged else self._read_all(held)
        return Said(said.text + held, said.calls) if calls is None else Said(said.text, calls)

    def _let_go(self, count: int) -> str:
        gone, self._held = self._held[:count], self._held[count:]
        return gone

    def _tagged(self) -> Said:
        text, calls = "", []
        while True:
            before, _, rest = self._held.partition(OPENING)
            inside, closing, after = rest.partition(CLOSING)
            if not closing:
                break
            call = self._read(inside)
            text += before.rstrip() if call else f"{before}{OPENING}{inside}{CLOSING}"
            calls += [call] if call else []
            self._held = after
        at = self._held.find(OPENING)
        end = at if at >= 0 else len(self._held) - overlap(self._held, OPENING)
        return Said(text + self._let_go(len(self._held[:end].rstrip())), calls)  # white space may stand before a call

    def _bare(self) -> Said:
        """Everything is held while it can be JSON, which it is from its first character or not at all."""
        begins = self._held.lstrip()[:1]
        self._is_text = bool(begins) and begins not in "{["
        return Said(self._let_go(len(self._held))) if self._is_text else Said()

    def _read_all(self, text: str) -> list[dict[str, Any]] | None:
        """The calls of a whole answer; None where any part of it is none."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
        calls = [self._call(one) for one in (found if isinstance(found, list) else [found])]
        return [call for call in calls if call] if calls and all(calls) else None

    def _read(self, text: str) -> dict[str, Any] | None:
        try:
            return self._call(json.loads(text))
        except (ValueError, RecursionError):
            return None

    def _call(self, found: Any) -> dict[str, Any] | None:
        """OpenAI's object; None for what calls none of the functions."""
        assert self._tools is not None
        if not isinstance(found, Mapping) or found.get("name") not in self._tools.names:
            return None
        arguments = found.get(self._tools.style.arguments, found.get("arguments"))
        if not isinstance(arguments, Mapping):
            return None
        function = {"name": found["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
        return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def numbered(calls: Sequence[dict[str, Any]], first: int) -> list[dict[str, Any]]:
    """Calls as a stream gives them."""
    return [{"index": index, **call} for index, call in enumerate(calls, start=first)]
