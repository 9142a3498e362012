"""What pydantic found wrong with a body, said of the field as the client wrote it.

Pydantic's path of a problem names the branch of a union too; a branch is in no body, so it is told apart by looking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Problem = dict[str, Any]

OBJECT_WANTED = frozenset({"model_attributes_type", "model_type", "dict_type"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a problem lies; inside a union also where the union begins and which of its branches objects."""

    written: str
    union: str | None = None
    branch: str | None = None


def explain(problems: Sequence[Problem], body: Any) -> tuple[str | None, str]:
    """The first wrong field and what is wrong with it."""
    placed = [(_place(problem, body), problem) for problem in problems]
    first, problem = placed[0]
    if first.union is None:
        return first.written or None, _told(problem)
    branches = [(place, problem) for place, problem in placed if place.union == first.union]
    # a branch that objects to the value's type at the very beginning was not meant, where another one looked inside
    meant = [(place, problem) for place, problem in branches if place.written != first.union or not _is_type(problem)]
    if len({place.branch for place, _ in meant}) == 1:
        place, problem = meant[0]
        return place.written, _told(problem)
    apt = [problem for _, problem in branches if not _is_type(problem)] or [problem for _, problem in branches]
    return first.union, "; or ".join(dict.fromkeys(_told(problem) for problem in apt))


def _place(problem: Problem, body: Any) -> Place:
    if problem["type"] == "json_invalid":
        return Place("")
    where, *path = problem["loc"]
    if where != "body":
        return Place(str(path[-1]) if path else "")
    value, written, union, branch = body, "", None, None
    for number, part in enumerate(path):
        is_last = number == len(path) - 1
        if isinstance(part, int) and isinstance(value, Sequence) and not isinstance(value, str) and part < len(value):
            value, written = value[part], f"{written}[{part}]"
        elif isinstance(value, dict) and (part in value or (is_last and problem["type"] == "missing")):
            value, written = value.get(part), f"{written}.{part}" if written else str(part)
        elif union is None:
            union, branch = written, str(part)
    return Place(written, union, branch)


def _is_type(problem: Problem) -> bool:
    kind: str = problem["type"]
    return kind.endswith("_type")


def _told(problem: Problem) -> str:
    kind, is_body = problem["type"], len(problem["loc"]) == 1
    if kind == "json_invalid":
        return f"the body is no valid JSON: {problem['ctx']['error']}"
    if kind == "missing" and is_body:
        return "the body is empty; send a JSON object"
    if kind in OBJECT_WANTED:
        return (
            "the body must be a JSON object, sent with Content-Type: application/json"
            if is_body
            else "must be an object"
        )
    if kind == "extra_forbidden":
        return "this route has no such field"
    text: str = problem["msg"].removeprefix("Value error, ").replace(" after validation", "")
    return text[:1].lower() + text[1:]
