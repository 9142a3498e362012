"""Renders chat messages to a prompt with a model folder's Jinja template, in a sandbox with bounded work.

The guards stop mistakes and simple bombs: huge ranges, wide formats, strings that are repeated, doubled, joined or
replaced beyond bounds, endless output. A limit on time is left to the server, which renders off the event loop.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from string import Formatter
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_format, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_TEXT = 4_000_000  # characters of a rendered chat, and of strings that a template builds on the way
WIDE_PERCENT = re.compile(r"%(\([^)]*\))?[-#0 +\d.]*(\*|\d{5})")
WIDE_BRACES = re.compile(r"\{|\d{5}")  # within a field; a brace there lets an argument say how wide

# For models without a template: "User: ...\n\nAssistant: ...\n\nAssistant:", a system message standing bare.
FALLBACK = """\
{{ leading_bos }}{% for message in messages %}
{% if message.role != 'system' %}{{ message.role | capitalize }}: {% endif %}
{{ message.content }}{{ '\n\n' }}
{%- endfor %}
{% if add_generation_prompt %}Assistant:{% endif %}
"""


class ChatTemplateError(ValueError):
    """A chat that the model's template does not render."""


def message_text(message: Mapping[str, object]) -> str:
    """A message's content as one string. Raises ChatTemplateError where a part of it is no text."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        raise ChatTemplateError(f"message content must be a string or a list of parts, not {type(content).__name__}")
    return "".join(map(_part_text, content))


class ChatTemplate:
    """One model's way to write a chat as text."""

    def __init__(
        self, source: str, variables: Mapping[str, str] | None = None, *, now: Callable[[], datetime] = datetime.now
    ) -> None:
        self._sandbox = Sandbox(source, now)
        self._variables = dict(variables or {})

    @cached_property
    def fault(self) -> str | None:
        """Why the template renders no chat at all, and in which line; None where it is whole."""
        try:
            self._sandbox.get_template("chat")
        except jinja2.TemplateSyntaxError as error:
            return f"line {error.lineno}: {_one_line(error.message or '')}"
        except (RecursionError, MemoryError, SyntaxError) as error:  # Python's own, of what Jinja makes of it
            return f"it is nested too deeply: {_one_line(error)}"
        return None

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        extra: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt for these messages; `extra` holds further template variables, such as tools."""
        if self.fault is not None:
            raise ChatTemplateError(f"the chat template is broken, {self.fault}")
        context: dict[str, object] = {"tools": None, "documents": None, **self._variables, **(extra or {})}
        context |= {"messages": [_with_text(message) for message in messages]}
        context |= {"add_generation_prompt": add_generation_prompt, "range": RangeBudget().range}
        try:
            template = self._sandbox.get_template("chat")
            return _bounded(template.generate(_plain(context, keep=("range",))))
        except ChatTemplateError:
            raise
        except Refusal as error:
            raise ChatTemplateError(f"the chat template refuses these messages: {_one_line(error)}") from error
        # A template is a program: what Python operators and methods raise on the wrong values comes through as it is.
        except (
            jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError,
            ValueError,
        ) as error:  # fmt: skip
            raise ChatTemplateError(f"the chat template fails: {_one_line(error)}") from error


class Refusal(jinja2.TemplateError):
    """Raised by a template itself, through raise_exception."""


@dataclass(slots=True)
class RangeBudget:
    """The range() of one rendering: all ranges together may not be longer than the sandbox allows one to be."""

    left: int = MAX_RANGE

    def range(self, *args: int) -> range:
        numbers = range(*args)
        self.left -= len(numbers)
        if self.left < 0:
            raise SecurityError(f"ranges of more than {MAX_RANGE} numbers")
        return numbers


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as chat templates expect it, holding one template, named "chat"."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Join what a block, a macro or a whole chat is made of."""
        return _bounded(pieces)

    def __init__(self, source: str, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, loopcontrols],
            loader=jinja2.DictLoader({"chat": source}),
        )
        self.filters |= {name: _narrow(self.filters[name]) for name in ("batch", "center", "indent", "slice")}
        self.filters |= {"format": _format, "join": _join, "replace": _replace, "tojson": _to_json}
        self.filters["_together"] = _together
        self.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: now().strftime(str(form))}
        self.globals |= {"namespace": PlainNamespace}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operators that can make much of little."""
        if operator == "*" and max(_repeats(left, right), _repeats(right, left)) > MAX_TEXT:
            raise SecurityError("a string or list repeated too often")
        if operator == "**" and (abs(left) > 1_000_000 or abs(right) > 100):
            raise SecurityError("a power of too large numbers")
        if operator == "%" and isinstance(left, str):
            _check_percent(left)
        if operator == "+" and isinstance(left, str | list | tuple) and len(left) + len(right) > MAX_TEXT:
            raise SecurityError("a text that is too long")
        return _sized(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls, save those of string methods that would make too much of their text."""
        method = getattr(obj, "__wrapped__", obj)  # format comes in the sandbox's own wrapper
        text = getattr(method, "__self__", None)
        if not isinstance(text, str):
            return super().call(context, obj, *args, **kwargs)
        _check_widths((*args, *kwargs.values()))
        match method.__name__:
            case "join":
                return _joined(text, *args, **kwargs)
            case "replace":
                _check_replacement(text, *map(str, args[:2]))
            case "format" | "format_map":
                _check_braces(text)
        return _sized(super().call(context, obj, *args, **kwargs))

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(TildeAsFilter().visit(source), *args, **kwargs)


class TildeAsFilter(NodeTransformer):
    """Rewrites `a ~ b` so that it, too, is bounded."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "_together", [], [], None, None, lineno=node.lineno)


class GenerationTag(Extension):
    """{% generation %}...{% endgeneration %}: marks the assistant's words for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_spoken"), [], [], body).set_lineno(lineno)

    def _spoken(self, caller: Macro) -> str:
        return caller()


class PlainNamespace(Namespace):
    """Jinja's namespace() without underscore names, so that nothing of Python's own can be overwritten."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"the namespace cannot hold {name!r}")
        super().__setitem__(name, value)


def _refuse(message: object) -> NoReturn:
    raise Refusal(str(message))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where Jinja's own filter would escape it for HTML."""
    _check_widths((indent,))
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return _bounded(encoder.iterencode(value))


def _check_braces(form: str) -> None:
    if any(WIDE_BRACES.search(spec or "") for _, _, spec, _ in Formatter().parse(form)):
        raise SecurityError("a text format that is too wide")


def _format(value: object, *args: Any, **kwargs: Any) -> str:
    """Jinja's filter, within bounds."""
    form = str(value)
    _check_percent(form)
    return cast(str, _sized(do_format(form, *args, **kwargs)))


@jinja2.pass_environment
def _join(environment: jinja2.Environment, value: Iterable[object], d: object = "", attribute: Any = None) -> str:
    """Jinja's filter, within bounds."""
    parts = value if attribute is None else map(make_attrgetter(environment, attribute), value)
    return _joined(str(d), map(str, parts))


def _replace(value: object, old: object, new: object, count: int | None = None) -> str:
    """Jinja's filter, within bounds."""
    text, old, new = str(value), str(old), str(new)
    _check_replacement(text, old, new)
    return text.replace(old, new, -1 if count is None else count)


def _joined(between: str, parts: Iterable[str]) -> str:
    return _bounded(piece for number, part in enumerate(parts) for piece in ((between, part) if number else (part,)))


def _check_replacement(text: str, old: str, new: str) -> None:
    if len(text) + text.count(old) * len(new) > 2 * MAX_TEXT:
        raise SecurityError("a text that is too long")


def _check_percent(form: str) -> None:
    if WIDE_PERCENT.search(form):
        raise SecurityError("a text format that is too wide")


def _sized(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise SecurityError("a text that is too long")
    return value


def _bounded(pieces: Iterable[str]) -> str:
    """Join, but not beyond MAX_TEXT."""
    return "".join(_counted(pieces))


def _counted(pieces: Iterable[str]) -> Iterator[str]:
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > MAX_TEXT:
            raise SecurityError(f"a text of more than {MAX_TEXT} characters")
        yield piece


def _together(parts: Iterable[object]) -> str:
    return _bounded(str(part) for part in parts)


def _repeats(value: object, times: object) -> int:
    return len(value) * times if isinstance(value, str | list | tuple) and isinstance(times, int) else 0


def _narrow(make: Callable[..., Any]) -> Callable[..., Any]:
    """The same filter, refusing a width that is too large; its marks for Jinja (what to pass first) stay."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_widths((*args, *kwargs.values()))
        return make(*args, **kwargs)

    checked.__dict__.update(make.__dict__)
    return checked


def _check_widths(values: Iterable[object]) -> None:
    if any(isinstance(value, int) and value > MAX_TEXT for value in values):
        raise SecurityError("a width that is too large")


def _with_text(message: Mapping[str, object]) -> dict[str, object]:
    """The message with its content as one string, which is what templates expect."""
    return dict(message) if message.get("content") is None else {**message, "content": message_text(message)}


def _part_text(part: object) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(text := part.get("text"), str):
        return text
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise ChatTemplateError(f"message content has a part of type {kind!r}; only text parts can be written as a prompt")


def _plain(values: Mapping[str, object], *, keep: Sequence[str] = ()) -> dict[str, object]:
    """A copy made of JSON's own types, so that a template never meets an object with methods of ours."""
    return {name: value if name in keep else _plain_value(value) for name, value in values.items()}


def _plain_value(value: object) -> object:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return {str(name): _plain_value(item) for name, item in value.items()}
        case Sequence():
            return [_plain_value(item) for item in value]
    raise ChatTemplateError(f"a chat template cannot be given a {type(value).__name__}")


def _one_line(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"
