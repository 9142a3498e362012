"""From what a model says of each token to entities in the text, as transformers' token-classification pipeline does it.

none: each token; simple: neighbours of one entity together; first, average, max: first make the tokens of a word agree.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from trefoil.api.scoring import Floats
from trefoil_models.cutting import Encoding
from trefoil_models.tokenizer import Tokenizer

Strategy = Literal["none", "simple", "first", "average", "max"]


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the text, or a word of several, with the shares of its labels."""

    word: str
    shares: Floats
    start: int
    end: int
    index: int
    is_subword: bool

    @property
    def label(self) -> int:
        return int(self.shares.argmax())

    @property
    def share(self) -> float:
        return float(self.shares.max())


def _mean(tokens: Sequence[Token]) -> Floats:
    mean: Floats = np.mean([token.shares for token in tokens], axis=0)
    return mean


WORD_SHARES: dict[str, Callable[[Sequence[Token]], Floats]] = {
    "first": lambda tokens: tokens[0].shares,
    "max": lambda tokens: max(tokens, key=lambda token: token.share).shares,
    "average": _mean,
}
"""What a word of several tokens is: by its first, by its surest, or by the mean of all."""


@dataclass(frozen=True, slots=True)
class Entity:
    """Something that the text names; `index` is its token's row where it is a token alone."""

    label: str
    score: float
    word: str
    start: int
    end: int
    index: int | None = None

    def body(self) -> dict[str, Any]:
        """As Hugging Face writes it."""
        kind = {"entity_group": self.label} if self.index is None else {"entity": self.label}
        place = {} if self.index is None else {"index": self.index}
        return {**kind, "score": self.score, **place, "word": self.word, "start": self.start, "end": self.end}


@dataclass(frozen=True, slots=True)
class Tagger:
    """How one model's tokens become entities."""

    tokenizer: Tokenizer
    labels: tuple[str, ...]
    strategy: Strategy
    ignored: frozenset[str]

    def entities(self, text: str, encoding: Encoding, shares_TC: Floats) -> list[Entity]:
        """The entities of one window."""
        tokens = list(self._tokens(text, encoding, shares_TC))
        if self.strategy == "none":
            found = [self._alone(token) for token in tokens]
        else:
            words = tokens if self.strategy == "simple" else [self._word(group) for group in _by_word(tokens)]
            found = [self._group(group) for group in self._by_entity(words)]
        return [entity for entity in found if entity.label not in self.ignored]

    def _tokens(self, text: str, encoding: Encoding, shares_TC: Floats) -> Iterator[Token]:
        """The text's own tokens; where the tokenizer knows no words, a token after a space begins one."""
        for row in encoding.rows_of(0):
            start, end = encoding.offsets[row]
            word, seen = encoding.tokens[row], text[start:end]
            if self.tokenizer.marks_subwords:
                is_subword = len(word) != len(seen)
            else:
                is_subword = start > 0 and " " not in text[start - 1 : start + 1]
            if encoding.ids[row] == self.tokenizer.unk_id:
                word, is_subword = seen, False
            yield Token(word, shares_TC[row], start, end, row, is_subword)

    def _alone(self, token: Token) -> Entity:
        return Entity(self.labels[token.label], token.share, token.word, token.start, token.end, token.index)

    def _word(self, tokens: Sequence[Token]) -> Token:
        """One word out of its tokens."""
        shares = WORD_SHARES[self.strategy](tokens)
        word = self.tokenizer.join([token.word for token in tokens])
        return replace(tokens[0], word=word, shares=shares, end=tokens[-1].end)

    def _by_entity(self, tokens: Sequence[Token]) -> Iterator[list[Token]]:
        """Neighbours of one kind together, unless the later says that it begins."""
        group: list[Token] = []
        for token in tokens:
            if group and self._goes_on(group[-1], token):
                group.append(token)
                continue
            if group:
                yield group
            group = [token]
        if group:
            yield group

    def _goes_on(self, before: Token, token: Token) -> bool:
        label = self.labels[token.label]
        return _kind(label) == _kind(self.labels[before.label]) and not label.startswith("B-")

    def _group(self, tokens: Sequence[Token]) -> Entity:
        return Entity(
            self.labels[tokens[0].label].split("-", 1)[-1],
            float(np.mean([token.share for token in tokens], dtype=np.float32)),
            self.tokenizer.join([token.word for token in tokens]),
            tokens[0].start,
            tokens[-1].end,
        )


def merged(entities: Sequence[Entity]) -> list[Entity]:
    """Of entities that windows found in the same place the longest, of equally long ones the surest."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: entity.start):
        if not kept or not kept[-1].start <= entity.start < kept[-1].end:
            kept.append(entity)
        elif (entity.end - entity.start, entity.score) > (kept[-1].end - kept[-1].start, kept[-1].score):
            kept[-1] = entity
    return kept


def _by_word(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    group: list[Token] = []
    for token in tokens:
        if group and not token.is_subword:
            yield group
            group = []
        group.append(token)
    if group:
        yield group


def _kind(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label
