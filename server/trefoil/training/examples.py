"""What a model learns from: ids, and which of them it must predict. Made of rows in `data`; knows no torch."""

from collections.abc import Iterator
from dataclasses import dataclass


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
