"""Ids to text: pieces that never split a character or show a stop string, with what each token scored.

One `TextStream` reads one request's events and gives pieces of its `n` answers as they come.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from trefoil import wire
from trefoil.api.engine_client import EngineStream
from trefoil_models.tokenizer import TextStream as Detokenizer
from trefoil_models.tokenizer import Tokenizer

Ending = Literal["eos", "stop", "length"]


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of the visible text, where its text begins, and its score."""

    token_id: int
    offset: int
    score: wire.TokenScore


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new of one answer; `ending` is set on its last piece."""

    index: int
    text: str
    ids: list[int] = field(default_factory=list)
    scores: list[ScoredToken] = field(default_factory=list)
    ending: Ending | None = None

    @property
    def finish_reason(self) -> str | None:
        """OpenAI's word for the ending."""
        return "stop" if self.ending == "eos" else self.ending


@dataclass(slots=True)
class Usage:
    """Tokens taken in and given out."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt + other.prompt, self.completion + other.completion, self.cached + other.cached)


class StopFilter:
    """Lets text through up to the first stop string, holding back what could be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.is_stopped = False

    def push(self, text: str) -> str:
        """The text that can be shown now."""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


class Answer:
    """One answer's text so far."""

    def __init__(self, index: int, detokenizer: Detokenizer, stops: Sequence[str], stop_ids: Sequence[int]) -> None:
        self.index = index
        self.num_tokens = 0
        self._detokenizer = detokenizer
        self._filter = StopFilter(stops)
        self._stop_ids = frozenset(stop_ids)
        self._length = self._shown = 0
        self._waiting: list[ScoredToken] = []

    def push(self, event: wire.Tokens) -> Piece:
        """Take new ids; the piece ends the answer where a stop string was met."""
        shown = ""
        scores: Sequence[wire.TokenScore | None] = event.scores or [None] * len(event.ids)
        for token_id, score in zip(event.ids, scores, strict=True):
            self.num_tokens += 1
            if token_id in self._stop_ids:
                continue  # ends the answer and is no part of its text
            if score is not None:
                self._waiting.append(ScoredToken(token_id, self._length, score))
            shown += self._take(self._detokenizer.push(token_id))
            if self._filter.is_stopped:
                return self._piece(shown, event.ids, "stop")
        return self._piece(shown, event.ids, None)

    def end(self, event: wire.Done) -> Piece:
        """The engine is done with this answer."""
        shown = self._take(self._detokenizer.flush())
        if self._filter.is_stopped:
            return self._piece(shown, [], "stop")
        shown += self._filter.flush()
        return self._piece(shown, [], "eos" if event.reason == "stop" else "length")

    def _take(self, text: str) -> str:
        self._length += len(text)
        return self._filter.push(text) if text else ""

    def _piece(self, shown: str, ids: list[int], ending: Ending | None) -> Piece:
        self._shown += len(shown)
        is_cut = ending == "stop"
        ready = [
            scored for scored in self._waiting if scored.offset < self._shown or (ending is not None and not is_cut)
        ]
        self._waiting = self._waiting[len(ready) :]
        return Piece(self.index, shown, ids, ready, ending)


class TextStream:
    """The pieces of one request's answers; usage and prompt scores are whole once it has ended."""

    def __init__(
        self, events: EngineStream, tokenizer: Tokenizer, *, stops: Sequence[str], skip_special_tokens: bool
    ) -> None:
        self._events = events
        request = events.request
        self._answers = [
            Answer(
                index,
                tokenizer.stream(request.ids, skip_special_tokens=skip_special_tokens),
                stops,
                request.params.stop_ids,
            )
            for index in range(request.params.n)
        ]
        self._cached = 0
        self.prompt_scores: list[wire.TokenScore] = []
        self.answer_scores: dict[int, float] = {}

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(
            wire.prompt_len(self._events.request), sum(answer.num_tokens for answer in self._answers), self._cached
        )

    def close(self) -> None:
        """Nobody will read this; end it in the engine."""
        self._events.close()

    async def events(self) -> AsyncIterator[wire.Event]:
        """The ids as they come, for who wants no text; leaving early ends the request in the engine."""
        try:
            async for event in self._events:
                yield event
        finally:
            self._events.close()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Pieces as they come; leaving early ends the request in the engine."""
        ended: set[int] = set()
        try:
            async for event in self._events:
                match event:
                    case wire.PromptScores():
                        self.prompt_scores += event.scores
                    case wire.Tokens() if event.index not in ended:
                        piece = self._answers[event.index].push(event)
                        if piece.ending is not None:
                            ended.add(event.index)
                            self._events.stop(event.index)
                        yield piece
                    case wire.Done():
                        self._cached = max(self._cached, event.cached_len)
                        if event.score is not None:
                            self.answer_scores[event.index] = event.score
                        if event.index not in ended:
                            yield self._answers[event.index].end(event)
        finally:
            self._events.close()


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
