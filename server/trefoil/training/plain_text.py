"""Plain text for pre-training: framed pieces for masks, pairs of sentences, windows to take spans out of."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from random import Random

from trefoil.rows import RowError
from trefoil.training.data import Reader
from trefoil.training.examples import Reading, SentencePair, Window
from trefoil_models.cutting import TooLittleRoomError

SENTENCE = re.compile(r"[^.!?。！？\n]+[.!?。！？]*\s*")
SHORTEST_WINDOW = 2


def text_readings(texts: Iterable[str], reader: Reader) -> Iterator[Reading]:
    """Each text in pieces of at most the greatest length, each framed as the tokenizer frames a text."""
    before, after = frame(reader)
    for text in texts:
        for piece in _pieces(text, reader, reader.longest - len(before) - len(after)):
            ids = (*before, *piece, *after)
            yield Reading(ids, (0,) * len(ids))


def sentence_pairs(texts: Iterable[str], reader: Reader, *, seed: int, swaps: bool) -> Iterator[SentencePair]:
    """Neighbouring sentences of a text, half of them in order (label 0); of the others, label 1, the second comes from
    another text (NSP; Devlin et al., arXiv 1810.04805, 3.1) or both are swapped (SOP; Lan et al., arXiv 1909.11942).

    Raises RowError where no text has two sentences, or where there is no other text to take a sentence from.
    """
    documents = [sentences for text in texts if (sentences := _sentences(text))]
    if all(len(sentences) < 2 for sentences in documents):
        raise RowError("no text has two sentences, of which this objective makes its pairs")
    if not swaps and len(documents) < 2:
        raise RowError("there must be at least two texts: wrong next sentences come from another one")
    rng = Random(seed)
    for number, sentences in enumerate(documents):
        for first, second in pairwise(sentences):
            label = rng.randrange(2)
            if label and swaps:
                first, second = second, first
            elif label:
                others = documents[(number + rng.randrange(1, len(documents))) % len(documents)]
                second = rng.choice(others)
            try:
                encoding = reader.tokenizer.encode_within(first, reader.longest, pair=second)
            except TooLittleRoomError as error:
                raise RowError(str(error)) from error
            yield SentencePair(tuple(encoding.ids), tuple(encoding.type_ids), label)


def text_windows(texts: Iterable[str], reader: Reader) -> Iterator[Window]:
    """Each text in windows that leave room for the token that ends it."""
    for piece in _windows(texts, reader, reader.longest - 1):
        yield Window(piece)


def retold_windows(texts: Iterable[str], reader: Reader) -> Iterator[Window]:
    """The same for texts that are read as the tokenizer frames them, and told again from the start token on."""
    before, after = frame(reader)
    for piece in _windows(texts, reader, reader.longest - len(before) - max(len(after), 1)):
        yield Window(piece, is_retold=True)


def _windows(texts: Iterable[str], reader: Reader, size: int) -> Iterator[tuple[int, ...]]:
    for text in texts:
        for piece in _pieces(text, reader, size):
            if len(piece) >= SHORTEST_WINDOW:
                yield tuple(piece)


def _pieces(text: str, reader: Reader, size: int) -> Iterator[Sequence[int]]:
    if size < 1:
        raise RowError(f"max_length {reader.longest} leaves no room for a text between the tokens around it")
    ids = reader.tokenizer.encode_ids(text, add_special_tokens=False)
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def frame(reader: Reader) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    encoding = reader.tokenizer.encode("a")
    own = encoding.rows_of(0)
    return encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]


def _sentences(text: str) -> list[str]:
    return [found.strip() for found in SENTENCE.findall(text) if found.strip()]
