"""Writes docs/api.md from the server's OpenAPI and docs/configuration.md from the command line's options.

python docs/write_reference.py            writes both
python docs/write_reference.py --check    fails where one is not what would be written
"""

import sys
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from typer.models import OptionInfo

from trefoil.api.app import bare_app
from trefoil.api.reference import ERRORS, GROUPS, operations
from trefoil.cli.serve import serve, worker

HERE = Path(__file__).parent
REF = "#/components/schemas/"
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
ITEMS = {"minItems": "at least", "maxItems": "at most"}
CHARACTERS = {"minLength": "at least", "maxLength": "at most"}
HUGE = 2**62
"""Bounds that only keep numbers inside 64 bits are not worth a reader's time."""
API_HEAD = """# HTTP reference

Written from the server's OpenAPI by `make docs`; a running server shows the same at `/docs`.
[One page a task](tasks/README.md) has examples.

Bodies are JSON unless said otherwise. Every answer carries `x-request-id`, the caller's own where it sent one.
`model` stands in the body or in the address (`?model=`), and may be left out where one served model can do the task.

## Errors

Every error of every route is `{"error": {"message", "type", "param", "code"}}`; `param` names the field as written.

| status | |
|---|---|
"""
CONFIGURATION_HEAD = """# Configuration

Written from the command line by `make docs`. Every flag has a variable; a flag stands above its variable, and both
above the default. A value that cannot be is refused at the start, in one line that names it. Several values of one
variable stand between spaces.
"""


def main() -> None:
    """Write both, or look whether they are current."""
    pages = {HERE / "api.md": api_page(), HERE / "configuration.md": configuration_page()}
    if "--check" not in sys.argv:
        for path, text in pages.items():
            path.write_text(text, encoding="utf-8")
        return
    stale = [path.name for path, text in pages.items() if not path.is_file() or path.read_text("utf-8") != text]
    if stale:
        sys.exit(f"docs/{', docs/'.join(stale)}: not what the code says; run `make docs`")


def api_page() -> str:
    schema = bare_app().openapi()
    shapes = schema["components"]["schemas"]
    lines = [API_HEAD + "\n".join(f"| {status} | {text} |" for status, text in ERRORS.items())]
    answers: dict[str, None] = {}
    for group in GROUPS:
        own = [one for one in operations(schema) if one[2]["tags"] == [group]]
        lines += [f"## {group}", *(_operation(*one, shapes, answers) for one in own)]
    lines += ["## Shapes of answers", *_shapes(shapes, answers)]
    return "\n\n".join(lines) + "\n"


def _operation(path: str, method: str, told: dict[str, Any], shapes: dict[str, Any], answers: dict[str, None]) -> str:
    parts = [f"### {method.upper()} {path}", told["description"]]
    query = [one for one in told.get("parameters", []) if one["in"] != "path" and one["name"] != "model"]
    if query:
        parts.append("In the address: " + ", ".join(f"`{one['name']}` ({_kind(one['schema'])})" for one in query) + ".")
    for media, content in told.get("requestBody", {}).get("content", {}).items():
        rows = list(_fields(content["schema"], shapes))
        head = "| field | |" if media == "application/json" else f"| field of {media} | |"
        parts.append("\n".join([head, "|---|---|", *rows]))
    for media, content in told["responses"]["200"].get("content", {}).items():
        if media == "application/json":
            parts.append(f"Answers {_kind(content['schema'], answers)}.")
        elif media == "text/event-stream":
            parts.append(content["schema"]["description"] + " These are server-sent events.")
        else:
            parts.append(f"Answers `{media}`.")
    errors = [status for status in told["responses"] if status != "200"]
    if errors:
        parts.append(f"Errors: {', '.join(errors)}.")
    return "\n\n".join(parts)


def _fields(schema: dict[str, Any], shapes: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """A row for each field of an object; objects inside come after theirs, dotted."""
    schema = _shape(schema, shapes)
    required = schema.get("required", [])
    for name, own in schema["properties"].items():
        needed = ", required" if name in required and not prefix else ""
        default = own.get("default")
        told = "" if default in (None, {}) or isinstance(default, dict) else f", `{default}` unless given"
        yield f"| `{prefix}{name}` | {_kind(own)}{needed}{told} |"
        inner = _objects(own, shapes)
        for one in inner:
            yield from _fields(one, shapes, f"{prefix}{name}.")


def _objects(schema: dict[str, Any], shapes: dict[str, Any]) -> list[dict[str, Any]]:
    """The object that a field takes, itself or one of its choices or items."""
    choices = schema.get("anyOf", [schema])
    found = [shapes[one["$ref"].removeprefix(REF)] for one in choices if "$ref" in one]
    found += [shapes[one["items"]["$ref"].removeprefix(REF)] for one in choices if "$ref" in one.get("items", {})]
    return [one for one in found if "properties" in one][:1]


def _shape(schema: dict[str, Any], shapes: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = shapes[schema["$ref"].removeprefix(REF)] if "$ref" in schema else schema
    return found


def _shapes(shapes: dict[str, Any], answers: dict[str, None]) -> Iterator[str]:
    """Every shape that an answer is made of, those inside too."""
    pending = dict(answers)
    told: set[str] = set()
    found = []
    while pending:
        name = next(iter(pending))
        del pending[name]
        if name in told:
            continue
        told.add(name)
        schema = shapes[name]
        if "properties" not in schema:
            continue
        rows = []
        for field, own in schema["properties"].items():
            optional = "" if field in schema.get("required", []) else ", may be left out"
            rows.append(f"| `{field}` | {_kind(own, pending, has_null=True)}{optional} |")
        about = [schema["description"]] if "description" in schema else []
        found.append("\n\n".join([f"### {name}", *about, "\n".join(["| field | |", "|---|---|", *rows])]))
    yield from sorted(found)


def _kind(schema: dict[str, Any], answers: dict[str, None] | None = None, *, has_null: bool = False) -> str:
    """A schema in words; shapes of answers are linked and noted."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(REF)
        if name == "State":
            return "text: `validating_files`, `queued`, `running`, `paused`, `succeeded`, `failed` or `cancelled`"
        if answers is None:
            return "object"
        answers[name] = None
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        kinds = dict.fromkeys(_kind(one, answers, has_null=has_null) for one in schema["anyOf"])
        return " or ".join(kind for kind in kinds if kind != "null" or has_null)
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{one}`" for one in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_kind(schema['items'], answers)}{_bounds(schema, ITEMS, ' of them')}"
    if kind == "object" and isinstance(inner := schema.get("additionalProperties"), dict) and inner:
        return f"object of {_kind(inner, answers)}"
    words = {"string": "file" if schema.get("format") == "binary" else "text", "boolean": "true or false"}
    size = _bounds(schema, CHARACTERS, " characters") if kind == "string" else _bounds(schema, BOUNDS)
    return words.get(kind, kind) + size


def _bounds(schema: dict[str, Any], words: dict[str, str], of: str = "") -> str:
    told = [f"{word} {schema[key]:,}" for key, word in words.items() if key in schema and abs(schema[key]) < HUGE]
    return f" ({', '.join(told)}{of})" if told else ""


def configuration_page() -> str:
    lines = [CONFIGURATION_HEAD.rstrip()]
    for command in (serve, worker):
        lines += [f"## trefoil {command.__name__}", command.__doc__ or "", "\n".join(_options(command))]
    return "\n\n".join(lines) + "\n"


def _options(command: Callable[..., None]) -> Iterator[str]:
    """A row for each flag, as the command's signature has it."""
    yield from ("| flag | variable | default | |", "|---|---|---|---|")
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in signature(command).parameters.items():
        kind, option = get_args(hints[name])[:2]
        if not isinstance(option, OptionInfo):
            continue
        own = "--" + name.replace("_", "-")
        named = option.default if isinstance(option.default, str) else None
        flags = (named,) if named else (own, own.replace("--", "--no-", 1)) if kind is bool else (own,)
        default = "" if parameter.default in (None, False) else f"`{str(parameter.default).replace('True', 'on')}`"
        choices = [one for inner in (kind, *get_args(kind)) if get_origin(inner) is Literal for one in get_args(inner)]
        told = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
        shown = ", ".join(f"`{flag}`" for flag in flags)
        yield f"| {shown} | `{option.envvar}` | {default} | {option.help}{told} |"


if __name__ == "__main__":
    main()
