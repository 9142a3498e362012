"""Reading config.json with care: typed keys, null as absent, and a refusal by name of what we cannot compute."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

MOST = 2**31 - 1
"""No size in a config is larger: what is, is a mistake."""
MOST_LAYERS = 1000
"""The largest published model has 126; what loops over layers must end."""
MOST_NUMBER = 1e18
"""Nor any other number, which keeps infinity and NaN out too; rope_theta has been seen above 2**31."""


class CheckpointError(ValueError):
    """A model folder that cannot be served as it is; the message is one line naming the cause."""


class Indivisible(ValueError):
    """A size that ranks cannot share evenly; the message says which."""


def divided(name: str, size: int, ranks: int) -> int:
    """One rank's part of a size. Raises Indivisible."""
    if size % ranks:
        raise Indivisible(f"{name} {size} is no multiple of it")
    return size // ranks


def divided_kv_heads(kv_heads: int, ranks: int) -> int:
    """One rank's key and value heads; where they are fewer than ranks, several hold the same. Raises Indivisible."""
    return 1 if ranks % kv_heads == 0 else divided("key and value heads", kv_heads, ranks)


class Plain(Protocol):
    """A config, a dataclass, of whose layers ranks share heads and the feed-forward's width."""

    @property
    def heads(self) -> int: ...
    @property
    def inner(self) -> int: ...


P = TypeVar("P", bound=Plain)


def divided_plainly(config: P, ranks: int) -> P:
    """One rank's: fewer heads, a narrower feed-forward. Raises Indivisible."""
    heads, inner = divided("heads", config.heads, ranks), divided("the feed-forward's width", config.inner, ranks)
    return replace(config, heads=heads, inner=inner)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True)
class Keys:
    """A checkpoint's config, or one object inside it (`path` tells where), or another JSON `file` of the folder."""

    values: Mapping[str, Any]
    path: str = ""
    file: str = "config.json"

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def is_null(self, name: str) -> bool:
        """Is the key written down as null? The few keys where that differs from absent ask for it."""
        return name in self.values and self.values[name] is None

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
            raise self._wrong(name, value, "a whole number")
        return value

    def size(self, name: str, default: int | None = None, *, most: int = MOST) -> int:
        """A whole number of at least 1."""
        value = self.integer(name, default)
        if not 1 <= value <= most:
            raise self._wrong(name, value, f"from 1 to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not -MOST_NUMBER <= value <= MOST_NUMBER:
            raise self._wrong(name, value, "a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def choice(self, name: str, allowed: Collection[str], default: str | None = None) -> str:
        value = self.text(name, default)
        if value not in allowed:
            raise self._wrong(name, value, "one of " + ", ".join(sorted(allowed)))
        return value

    def strings(self, name: str, default: list[str] | None = None) -> list[str]:
        value = self._get(name, default)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, value, "a list of strings")
        return value

    def integers(self, name: str, default: list[int] | None = None) -> list[int]:
        value = self._get(name, default)
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self._wrong(name, value, "a list of whole numbers")
        return value

    def inside(self, name: str) -> "Keys":
        """The object under a key; empty where it is absent."""
        value = self._get(name, {})
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return Keys(value, f"{self.path}{name}.", self.file)

    def refuse(self, name: str, *neutral: object) -> None:
        """Raise where the key is present with another value than the neutral ones: it would change the mathematics."""
        if name in self and self.values[name] not in neutral:
            raise CheckpointError(
                f"{self.file}: {self.path}{name} = {self.values[name]!r} would change the mathematics "
                "and is not implemented"
            )

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self.file}: {self.path}{name} is missing")
        return value

    def _wrong(self, name: str, value: object, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: {self.path}{name} = {value!r} must be {wanted}")
