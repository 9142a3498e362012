"""What a model learns from: ids, and which of them it must predict. Made of rows in `data`; knows no torch."""

from collections.abc import Iterator
from dataclasses import dataclass

from trefoil.rows import Message

IGNORED = -100
"""The label of a row that teaches nothing."""


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence: its ids, and which of them the model must learn to predict from those before.

    An encoder-decoder reads `source` with its encoder; `ids` are then its decoder's, the start token first.
    """

    ids: tuple[int, ...]
    is_label: tuple[bool, ...]
    source: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.is_label) >= 2
        assert not self.is_label[0], "nothing comes before the first id"

    def __len__(self) -> int:
        """Rows in a pass: the last id is only ever predicted."""
        return len(self.ids) - 1 + len(self.source)

    @property
    def num_labels(self) -> int:
        return sum(self.is_label)


@dataclass(frozen=True, slots=True)
class Pair:
    """An answer and a worse one to the same prompt, with what the reference model thinks of each: its log p."""

    chosen: Example
    rejected: Example
    ref_chosen: float = 0.0
    ref_rejected: float = 0.0

    def __len__(self) -> int:
        return len(self.chosen) + len(self.rejected)

    def __iter__(self) -> Iterator[Example]:
        yield self.chosen
        yield self.rejected


@dataclass(frozen=True, slots=True)
class Reading:
    """One text to be read whole: its ids and types, and its labels as the objective wants them, if any."""

    ids: tuple[int, ...]
    types: tuple[int, ...]
    labels: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class SentencePair:
    """Two sentences as one text, and whether the second does not belong there: 0 or 1."""

    ids: tuple[int, ...]
    types: tuple[int, ...]
    label: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Window:
    """Text out of which spans are taken anew at every use, each id read or predicted; `is_retold`: predicted too."""

    ids: tuple[int, ...]
    is_retold: bool = False

    def __len__(self) -> int:
        """Rows in a pass; the few marks of gaps are not counted, as a retold text is read with gaps."""
        return len(self.ids) * (2 if self.is_retold else 1)


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt to answer: its ids, and what whoever scores the answer is shown of it."""

    ids: tuple[int, ...]
    prompt: str | tuple[Message, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A text and a worse one, each to be read whole."""

    chosen: Reading
    rejected: Reading

    def __len__(self) -> int:
        return len(self.chosen) + len(self.rejected)
