"""Counts right answers and proper ends by kind and language, and prints them as a table."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from trefoil_demo.facts import LANGUAGES
from trefoil_demo.world import Question, is_right


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said to a held-out question, and whether it stopped by itself."""

    question: Question
    text: str
    has_stopped: bool


class Tally:
    """Replies counted."""

    def __init__(self, replies: Iterable[Reply]) -> None:
        self.asked: Counter[tuple[str, str]] = Counter()
        self.right: Counter[tuple[str, str]] = Counter()
        self.stopped = 0
        self.wrong: list[Reply] = []
        for reply in replies:
            self._add(reply)

    @property
    def accuracy(self) -> float:
        return self.right.total() / max(1, self.asked.total())

    def table(self) -> str:
        """A line a kind, a column a language, then the sums."""
        kinds = list(dict.fromkeys(kind for kind, _ in self.asked))
        lines = [f"{'kind':<12}" + "".join(f"{language:>16}" for language in LANGUAGES)]
        lines += [f"{kind:<12}" + "".join(self._cell(kind, language) for language in LANGUAGES) for kind in kinds]
        total, right = self.asked.total(), self.right.total()
        lines.append(f"right: {right} of {total} ({self.accuracy:.1%}); stopped by itself: {self.stopped} of {total}")
        return "\n".join(lines)

    def _add(self, reply: Reply) -> None:
        place = (reply.question.kind, reply.question.language)
        self.asked[place] += 1
        self.stopped += reply.has_stopped
        if is_right(reply.question, reply.text):
            self.right[place] += 1
        else:
            self.wrong.append(reply)

    def _cell(self, kind: str, language: str) -> str:
        right, asked = self.right[kind, language], self.asked[kind, language]
        return f"{right:>4} of {asked:<3}{right / asked:>5.0%}" if asked else f"{'-':>16}"
