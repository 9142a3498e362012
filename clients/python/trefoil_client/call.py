"""What a request is and how its answer is read: the nouns that `calls` builds with. Nothing here sends."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Generic, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter, ValidationError

from trefoil_client.errors import UnreadableAnswer
from trefoil_client.sse import Event

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

FileContent = tuple[str, bytes | IO[bytes]]
"""A file's name and what is in it."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and how its answer's body is read. One that `is_safe` may be sent twice."""

    method: str
    path: str
    read: Callable[[bytes], T]
    body: Mapping[str, Any] | None = None
    query: Mapping[str, str] | None = None
    files: Mapping[str, FileContent] | None = None
    form: Mapping[str, str] | None = None
    is_safe: bool = False
    also: tuple[int, ...] = ()
    """Error statuses whose body is an answer all the same."""


@dataclass(frozen=True, slots=True)
class StreamCall(Generic[T]):
    """A request that is answered by events, and how each is read; it ends in `[DONE]` where `has_end`."""

    method: str
    path: str
    read: Callable[[Event], T]
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] | None = None
    has_end: bool = True


@dataclass(frozen=True, slots=True)
class TaskCall(Call[T]):
    """A task for one input; `item` reads one answer of those that a list of inputs gives."""

    item: Callable[[Any], T] = lambda value: value


def post_call(path: str, kind: type[M], body: Mapping[str, Any]) -> Call[M]:
    return Call("POST", path, whole(kind), body)


def stream_call(path: str, kind: type[M], body: dict[str, Any]) -> StreamCall[M]:
    return StreamCall("POST", path, event_of(kind), {**body, "stream": True, "stream_options": {"include_usage": True}})


def task_call(
    name: str, inputs: Any, parameters: Mapping[str, Any], model: str | None, item: Callable[[Any], T]
) -> TaskCall[T]:
    body = given(inputs=inputs, parameters=dict(parameters) or None, model=model)

    def read(content: bytes) -> T:
        return known(item, parsed(content, object))

    return TaskCall("POST", f"/v1/tasks/{name}", read, body, item=item)


def given(**fields: Any) -> dict[str, Any]:
    """The fields that were given."""
    return {name: value for name, value in fields.items() if value is not None}


def query_of(**fields: Any) -> dict[str, str]:
    return {name: str(value) for name, value in given(**fields).items()}


def plain(value: Any) -> Any:
    """Any sequence as a list; a string stays one."""
    return value if value is None or isinstance(value, str) else list(value)


def path_part(name: str) -> str:
    """A name as a part of a path; model names may hold slashes."""
    return quote(name, safe="/:")


def parsed(content: bytes, kind: type[Any]) -> Any:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise UnreadableAnswer("the server's answer is no JSON") from error
    if not isinstance(value, kind):
        raise UnreadableAnswer(f"the server's answer is no {kind.__name__}")
    return value


def known(read: Callable[[Any], T], value: Any) -> T:
    try:
        return read(value)
    except (ValidationError, LookupError, TypeError) as error:
        raise UnreadableAnswer(f"the server's answer has another shape: {error}") from error


def whole(kind: type[M]) -> Callable[[bytes], M]:
    return lambda content: known(kind.model_validate, parsed(content, dict))


def listed(kind: type[M]) -> Callable[[bytes], list[M]]:
    return lambda content: known(items(kind), parsed(content, dict).get("data"))


def event_of(kind: type[M]) -> Callable[[Event], M]:
    return lambda event: known(kind.model_validate, parsed(event.data.encode(), dict))


def one(kind: type[M]) -> Callable[[Any], M]:
    """One answer, also where it lies alone in a list."""
    return lambda value: kind.model_validate(value[0] if isinstance(value, list) else value)


def items(kind: type[M]) -> Callable[[Any], list[M]]:
    """A list of answers, also where it lies alone in a list, as text-classification gives it."""
    read = TypeAdapter(list[kind]).validate_python  # type: ignore[valid-type]
    return lambda value: read(value[0] if value and isinstance(value[0], list) else value)


def text_of(field: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        text: str = (value[0] if isinstance(value, list) else value)[field]
        return text

    return read
