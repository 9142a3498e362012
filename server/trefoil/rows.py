"""What a line of a training file may say: its format is told by its keys, and becomes one of a few kinds of row.

Knows no model: how a row becomes ids, and how long it may be, is the trainer's to say.
"""

import codecs
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

Message = Mapping[str, Any]

MOST_LINE_BYTES = 16 << 20
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "tool": "tool", "observation": "tool"}


class RowError(ValueError):
    """A line that no training can use; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation to learn the assistant's part of. A message's `weight` of 0 keeps it from being learned."""

    messages: tuple[Message, ...]
    tools: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Continuation:
    """Plain text and how it goes on; only what goes on is learned."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Preference:
    """One answer preferred to another: all chats with the same beginning, or all plain text."""

    chosen: Chat | Continuation
    rejected: Chat | Continuation
    num_shared: int = 0
    """How many messages of both chats are the prompt."""


@dataclass(frozen=True, slots=True)
class Text:
    """Text to learn every token of."""

    text: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, or a pair, and its class; several classes where a text may have several."""

    text: str
    text_pair: str | None
    label: str | int | float | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tagged:
    """Words with a tag each."""

    tokens: tuple[str, ...]
    tags: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """SQuAD: the answers' texts and where they start in the context; none where it cannot be answered."""

    question: str
    context: str
    texts: tuple[str, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a policy is to answer; `rest` is what a reward may want to know besides."""

    prompt: str | tuple[Message, ...]
    rest: Mapping[str, Any]


Row = Chat | Continuation | Preference | Text | Labelled | Tagged | Question | Prompt


@dataclass(frozen=True, slots=True)
class Line:
    """A row and where it stands."""

    file: str
    number: int
    row: Row


def read_lines(path: Path, filename: str) -> Iterator[Line]:
    """The file's rows; blank lines are none. Raises RowError naming file, line and cause."""
    with path.open("rb") as source:
        yield from parse_lines(source, filename)


def parse_lines(source: BinaryIO, filename: str) -> Iterator[Line]:
    """The rows of an open file. Raises RowError naming file, line and cause; also where there is no row at all."""
    number, num_rows = 0, 0
    while line := source.readline(MOST_LINE_BYTES + 1):
        number += 1
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not text.strip():
            continue
        try:
            row = parse_row(text)
        except RowError as error:
            raise RowError(f"{filename}, line {number}: {error}") from error
        num_rows += 1
        yield Line(filename, number, row)
    if not num_rows:
        raise RowError(f"{filename} is empty: it must hold one JSON object a line")


def parse_row(line: bytes) -> Row:
    """One line. Raises RowError."""
    if len(line) > MOST_LINE_BYTES:
        raise RowError(f"longer than {MOST_LINE_BYTES >> 20} MiB")
    try:
        values = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise RowError(f"no valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise RowError(f"must be a JSON object, not {_kind(values)}")
    for keys, read in FORMATS:
        if keys <= values.keys():
            return read(values)
    told = ", ".join(sorted(map(repr, values))[:8]) or "none"
    raise RowError(f"its keys ({told}) are those of no known format; known are {KNOWN}")


def _chat(values: Message) -> Chat:
    return Chat(_messages(values["messages"], "messages"), _tools(values))


def _conversation(values: Message) -> Chat:
    turns = _list(values, "conversations")
    return Chat(
        _messages([_turn(turn, f"conversations[{at}]") for at, turn in enumerate(turns)], "conversations"),
        _tools(values),
    )


def _turn(turn: Any, where: str) -> Any:
    """A ShareGPT turn as a message; anything else as it is, to be judged as a message."""
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    role = turn["from"]
    if "value" not in turn:
        raise RowError(f"{where} has no 'value'")
    known = SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
    return {"role": known, "content": turn["value"]}


def _instruction(values: Message) -> Chat:
    asked, given = _text(values, "instruction"), values.get("input")
    if given is not None and not isinstance(given, str):
        raise RowError(f"'input' must be text, not {_kind(given)}")
    if not asked and not given:
        raise RowError("'instruction' is empty")
    system = [{"role": "system", "content": _text(values, "system")}] if values.get("system") else []
    question = {"role": "user", "content": f"{asked}\n{given}" if given else asked}
    return Chat((*system, question, {"role": "assistant", "content": _filled(values, "output")}))


def _continuation(values: Message) -> Chat | Continuation:
    if isinstance(values["prompt"], str) and isinstance(values["completion"], str):
        return Continuation(values["prompt"], _filled(values, "completion"))
    prompt, answer = _messages(values["prompt"], "prompt"), _answer(values["completion"], "completion")
    return Chat((*prompt, *answer), _tools(values))


def _preference(values: Message) -> Preference:
    if isinstance(values["prompt"], str) and isinstance(values["chosen"], str):
        prompt = values["prompt"]
        chosen, rejected = (Continuation(prompt, _filled(values, name)) for name in ("chosen", "rejected"))
        return _told_apart(Preference(chosen, rejected))
    return _chats_apart(values, values["prompt"], "prompt", "chosen", "rejected")


def _openai_preference(values: Message) -> Preference:
    asked = values["input"]
    if isinstance(asked, str):
        return _preference(
            {"prompt": asked, "chosen": values["preferred_output"], "rejected": values["non_preferred_output"]}
        )
    if not isinstance(asked, dict) or "messages" not in asked:
        raise RowError("'input' must be an object with 'messages'")
    given = {**values, "tools": asked.get("tools")}
    return _chats_apart(given, asked["messages"], "input.messages", "preferred_output", "non_preferred_output")


def _implicit_preference(values: Message) -> Preference:
    """Both chats whole: what they share is the prompt."""
    chosen, rejected = (_messages(values[name], name) for name in ("chosen", "rejected"))
    num_shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        num_shared += 1
    tools = _tools(values)
    return _told_apart(Preference(Chat(chosen, tools), Chat(rejected, tools), num_shared))


def _chats_apart(values: Message, prompt: Any, prompt_name: str, chosen: str, rejected: str) -> Preference:
    shared, tools = _messages(prompt, prompt_name), _tools(values)
    one, other = (Chat((*shared, *_answer(values[name], name)), tools) for name in (chosen, rejected))
    return _told_apart(Preference(one, other, len(shared)))


def _told_apart(preference: Preference) -> Preference:
    if preference.chosen == preference.rejected:
        raise RowError("the chosen and the rejected answer are the same")
    return preference


def _plain_text(values: Message) -> Text:
    return Text(_filled(values, "text"))


def _labelled(values: Message) -> Labelled:
    label = values["label"]
    if isinstance(label, list) and all(isinstance(one, str) for one in label):
        label = tuple(label)
    if isinstance(label, bool) or not isinstance(label, str | int | float | tuple):
        raise RowError(f"'label' must be text, a number or a list of texts, not {_kind(label)}")
    pair = values.get("text_pair")
    if pair is not None and not isinstance(pair, str):
        raise RowError(f"'text_pair' must be text, not {_kind(pair)}")
    return Labelled(_filled(values, "text"), pair, label)


def _tagged(values: Message) -> Tagged:
    tokens, tags = _list(values, "tokens"), _list(values, "tags")
    if not all(isinstance(token, str) for token in tokens):
        raise RowError("'tokens' must be a list of texts")
    if not all(isinstance(tag, str | int) and not isinstance(tag, bool) for tag in tags):
        raise RowError("'tags' must be a list of texts or of numbers")
    if len(tokens) != len(tags):
        raise RowError(f"{len(tokens)} 'tokens' and {len(tags)} 'tags': there must be one tag a token")
    return Tagged(tuple(tokens), tuple(tags))


def _question(values: Message) -> Question:
    answers = values["answers"]
    if not isinstance(answers, dict) or not {"text", "answer_start"} <= answers.keys():
        raise RowError("'answers' must be an object with 'text' and 'answer_start'")
    texts, starts = answers["text"], answers["answer_start"]
    if not isinstance(texts, list) or not isinstance(starts, list):
        raise RowError("'answers.text' and 'answers.answer_start' must be lists; empty where there is no answer")
    context = _filled(values, "context")
    if len(texts) != len(starts):
        raise RowError("'answers.text' and 'answers.answer_start' differ in length")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not isinstance(start, int) or context[start : start + len(text)] != text:
            raise RowError(f"the answer {text!r} does not stand at {start} in the context")
    return Question(_filled(values, "question"), context, tuple(texts), tuple(starts))


def _prompt(values: Message) -> Prompt:
    rest = {name: value for name, value in values.items() if name != "prompt"}
    if isinstance(values["prompt"], str):
        return Prompt(_filled(values, "prompt"), rest)
    return Prompt(_messages(values["prompt"], "prompt"), rest)


FORMATS: Sequence[tuple[frozenset[str], Callable[[Message], Row]]] = (
    (frozenset({"input", "preferred_output", "non_preferred_output"}), _openai_preference),
    (frozenset({"prompt", "chosen", "rejected"}), _preference),
    (frozenset({"chosen", "rejected"}), _implicit_preference),
    (frozenset({"messages"}), _chat),
    (frozenset({"conversations"}), _conversation),
    (frozenset({"instruction", "output"}), _instruction),
    (frozenset({"prompt", "completion"}), _continuation),
    (frozenset({"question", "context", "answers"}), _question),
    (frozenset({"tokens", "tags"}), _tagged),
    (frozenset({"text", "label"}), _labelled),
    (frozenset({"prompt"}), _prompt),
    (frozenset({"text"}), _plain_text),
)
"""Keys that make a format, the more particular first."""

KNOWN = ", ".join("{" + ", ".join(sorted(keys)) + "}" for keys, _ in FORMATS)


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise RowError(f"'{where}' must be a list of messages, not {_kind(value)}")
    if not value:
        raise RowError(f"'{where}' is an empty list")
    return tuple(_message(message, f"{where}[{at}]") for at, message in enumerate(value))


def _answer(value: Any, where: str) -> tuple[Message, ...]:
    """Messages, or text that the assistant says."""
    if isinstance(value, str):
        return ({"role": "assistant", "content": value},)
    return _messages(value, where)


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise RowError(f"{where} must be an object with 'role' and 'content', not {_kind(message)}")
    if "role" not in message:
        raise RowError(f"{where} has no 'role'")
    if not isinstance(message["role"], str) or message["role"] not in ROLES:
        raise RowError(f"{where}.role {message['role']!r}: must be one of {', '.join(sorted(ROLES))}")
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise RowError(f"{where}.weight {weight!r}: must be 0 or 1")
    role = "system" if message["role"] == "developer" else message["role"]
    return {**message, "role": role, "content": _content(message, where)}


def _content(message: Message, where: str) -> str:
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if content is None and message["role"] == "assistant" and (message.get("tool_calls") or "function_call" in message):
        return ""
    if not isinstance(content, str):
        problem = "has no 'content'" if "content" not in message else f"'content' must be text, not {_kind(content)}"
        raise RowError(f"{where} {problem}")
    return content


def _tools(values: Message) -> tuple[Any, ...]:
    tools = values.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise RowError(f"'tools' must be a list, not {_kind(tools)}")
    return tuple(tools or ())


def _list(values: Message, name: str) -> list[Any]:
    value = values[name]
    if not isinstance(value, list) or not value:
        raise RowError(f"'{name}' must be a list that is not empty")
    return value


def _text(values: Message, name: str) -> str:
    value = values[name]
    if not isinstance(value, str):
        raise RowError(f"'{name}' must be text, not {_kind(value)}")
    return value


def _filled(values: Message, name: str) -> str:
    value = _text(values, name)
    if not value:
        raise RowError(f"'{name}' is empty")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
