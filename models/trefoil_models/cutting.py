"""Cutting encoded texts to what a model can take: the end off, or in windows that overlap, as transformers cuts them.

Special tokens and the other text of a pair always stay.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Cut = Literal["longest", "first", "second"]
"""Which text of a pair gives way."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """One text or a pair as tokens.

    Offsets are places in the token's text, (0, 0) for tokens that were added. `texts` says of which text a token is (0
    or 1), `words` of which word of that text; None for added tokens.
    """

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    type_ids: list[int]
    texts: list[int | None]
    words: list[int | None]

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, text: int) -> list[int]:
        """Where the tokens of one text stand."""
        return [row for row, own in enumerate(self.texts) if own == text]

    def only(self, rows: Sequence[int]) -> "Encoding":
        """These tokens alone."""
        return Encoding(
            [self.ids[row] for row in rows],
            [self.tokens[row] for row in rows],
            [self.offsets[row] for row in rows],
            [self.type_ids[row] for row in rows],
            [self.texts[row] for row in rows],
            [self.words[row] for row in rows],
        )


def end_to_end(pieces: Sequence[tuple[Encoding, int]]) -> Encoding:
    """Texts of these lengths, each encoded by itself, as one text."""
    whole, start = Encoding([], [], [], [], [], []), 0
    for piece, length in pieces:
        whole.ids.extend(piece.ids)
        whole.tokens.extend(piece.tokens)
        whole.offsets.extend((start + begin, start + end) for begin, end in piece.offsets)
        whole.type_ids.extend(piece.type_ids)
        whole.texts.extend(piece.texts)
        whole.words.extend(piece.words)
        start += length
    return whole


class TooLittleRoomError(ValueError):
    """What must stay does not fit by itself."""


class TooSparseError(TooLittleRoomError):
    """A text of which too much would have to be read to find the tokens that fit."""


def cut_to(encoding: Encoding, limit: int, *, cut: Cut = "longest") -> Encoding:
    """The encoding with the ends of its texts cut off to `limit` tokens. Raises TooLittleRoomError."""
    if len(encoding) <= limit:
        return encoding
    lens = [len(encoding.rows_of(text)) for text in range(2)]
    room = limit - (len(encoding) - sum(lens))
    kept = (
        _longest_first(lens[0], lens[1], room)
        if cut == "longest"
        else _one_alone(lens, room, 0 if cut == "first" else 1)
    )
    if min(kept) < 0 or (max(kept) == 0 and room < 1):
        raise TooLittleRoomError(f"{limit} tokens leave no room for the text")
    gone = {row for text in range(2) for row in encoding.rows_of(text)[kept[text] :]}
    return encoding.only([row for row in range(len(encoding)) if row not in gone])


def windows(encoding: Encoding, limit: int, *, text: int, stride: int) -> Iterator[Encoding]:
    """The encoding in windows over one of its texts, each beginning `stride` tokens before the last one's end.

    Raises TooLittleRoomError where a window would not move on.
    """
    if len(encoding) <= limit:
        yield encoding
        return
    rows = encoding.rows_of(text)
    room = limit - (len(encoding) - len(rows))
    if room <= stride:
        raise TooLittleRoomError(f"windows of {limit} tokens leave {room} for the text, not more than stride {stride}")
    always = [row for row, of in enumerate(encoding.texts) if of != text]
    for start in range(0, len(rows), room - stride):
        yield encoding.only(sorted(always + rows[start : start + room]))
        if start + room >= len(rows):
            return


def _longest_first(first: int, second: int, room: int) -> list[int]:
    """The longer text gives way until both are as long, then both."""
    short, long = sorted((first, second))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return [short, long] if first <= second else [long, short]


def _one_alone(lens: list[int], room: int, text: int) -> list[int]:
    kept = list(lens)
    kept[text] = room - lens[1 - text]
    return kept
