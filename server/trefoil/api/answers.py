"""From start and end scores of a text's windows to answers, as transformers' question-answering pipeline did it.

In each window the share of a span is P(start) P(end), over the context's tokens and the first one, which stands for
"no answer". Equal answers of several windows or spans are counted together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trefoil.api.scoring import Floats, softmax
from trefoil_models.cutting import Encoding

HIDDEN = -10000.0
NO_NULL = 1e6
CONTEXT = 1
"""The context is the second text."""


@dataclass(slots=True)
class Answer:
    """Words of the context; none where there is no answer."""

    text: str
    score: float
    start: int
    end: int

    def body(self) -> dict[str, Any]:
        """As Hugging Face writes it."""
        return {"score": self.score, "start": self.start, "end": self.end, "answer": self.text}


@dataclass(frozen=True, slots=True)
class Reader:
    """What is wanted of a context's windows."""

    top_k: int = 1
    max_answer_len: int = 15
    handle_impossible_answer: bool = False
    align_to_words: bool = True
    cls_id: int | None = None

    def answers(self, context: str, windows: Sequence[Encoding], scores: Sequence[Floats]) -> list[Answer]:
        """The best answers, the best first."""
        found: dict[str, Answer] = {}
        null = NO_NULL
        for window, scores_Q2 in zip(windows, scores, strict=True):
            is_free_Q = np.array(
                [text == CONTEXT or i == self.cls_id for i, text in zip(window.ids, window.texts, strict=True)]
            )
            start_Q, end_Q = softmax(np.where(is_free_Q, scores_Q2.T, np.float32(HIDDEN)))
            null = min(null, float(start_Q[0] * end_Q[0]))
            start_Q[0] = end_Q[0] = 0.0
            for first, last, score in self._spans(start_Q, end_Q, is_free_Q):
                start, end = self._place(window, first, last)
                same = found.setdefault(context[start:end].lower(), Answer(context[start:end], 0.0, start, end))
                same.score += score
        answers = list(found.values())
        if self.handle_impossible_answer:
            answers.append(Answer("", null, 0, 0))
        return sorted(answers, key=lambda answer: -answer.score)[: self.top_k]

    def _spans(self, start_Q: Floats, end_Q: Floats, is_free_Q: Any) -> Iterator[tuple[int, int, float]]:
        """First and last rows of the likeliest spans; more than wanted, as some will turn out to be the same words."""
        shares_QQ = np.tril(np.triu(np.outer(start_Q, end_Q)), self.max_answer_len - 1)
        flat = shares_QQ.flatten()
        count = self.top_k * 2 + 10 if self.align_to_words else self.top_k
        for first, last in zip(*np.unravel_index(_greatest(flat, count), shares_QQ.shape), strict=True):
            if is_free_Q[first] and is_free_Q[last]:
                yield int(first), int(last), float(shares_QQ[first, last])

    def _place(self, window: Encoding, first: int, last: int) -> tuple[int, int]:
        """Where a span lies in the context, widened to whole words where the tokenizer knows them."""
        words = window.words[first], window.words[last]
        if not self.align_to_words or None in words:
            return window.offsets[first][0], window.offsets[last][1]
        rows = window.rows_of(CONTEXT)
        start = next(row for row in rows if window.words[row] == words[0])
        end = next(row for row in reversed(rows) if window.words[row] == words[1])
        return window.offsets[start][0], window.offsets[end][1]


def _greatest(numbers: Floats, count: int) -> Any:
    """Where the greatest lie, in falling order, the first of equals first; a full sort would take most of the time."""
    least = -np.partition(-numbers, count - 1)[count - 1] if count < len(numbers) else numbers.min()
    places = np.flatnonzero(numbers >= least)
    return places[np.argsort(-numbers[places], kind="stable")[:count]]
