"""Server-sent events from bytes, however they are cut: lines end in LF, CR or both, and nowhere else.

Unicode's other line breaks are part of the text; that is why the bytes are split and not the string.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `id` is the last one that was seen."""

    data: str
    name: str = "message"
    id: str | None = None


@dataclass(slots=True)
class EventDecoder:
    """Feed it chunks as they come, and take the events that are whole."""

    _rest: bytes = b""
    _data: list[str] = field(default_factory=list)
    _name: str = "message"
    _id: str | None = None

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that this chunk completes."""
        text = self._rest + chunk
        # a CR at the end may be half of a CRLF: it waits for what follows
        held = text[-1:] if text.endswith(b"\r") else b""
        *lines, rest = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = rest + held
        for line in lines:
            if line:
                self._take(line.decode())
            elif event := self._event():
                yield event

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "event":
                self._name = value
            case "id":
                self._id = value

    def _event(self) -> Event | None:
        data, name = self._data, self._name
        self._data, self._name = [], "message"
        return Event("\n".join(data), name, self._id) if data else None
