"""The held-out test of the demo encoders: what is asked, what is right, and the table; whoever answers is handed in."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from trefoil_demo.facts import LANGUAGES
from trefoil_demo.mentions import Tagged, held_out_mentions
from trefoil_demo.opinions import LABELS, held_out_opinions
from trefoil_demo.passages import Passage, held_out_blanks, held_out_passages

Entity = tuple[str, int, int]
"""What it is, where it begins and where it ends."""


@dataclass(frozen=True, slots=True)
class Answerers:
    """The four tasks, each for all its cases at once, answers in order.

    `fill` gets texts and the span to hide and says what stands there; `sentiment` gives labels, `entities` what is
    named where, `answers` the words of the context that answer.
    """

    fill: Callable[[Sequence[tuple[str, tuple[int, int]]]], Sequence[str]]
    sentiment: Callable[[Sequence[str]], Sequence[str]]
    entities: Callable[[Sequence[str]], Sequence[Sequence[Entity]]]
    answers: Callable[[Sequence[tuple[str, str]]], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One case: its task, its language, whether the answer was right, and both for whoever wants to look."""

    task: str
    language: str
    is_right: bool
    asked: str
    said: object


def fill_verdicts(fill: Callable[[Sequence[tuple[str, tuple[int, int]]]], Sequence[str]]) -> Iterator[Verdict]:
    """Is the hidden word found?"""
    blanks = held_out_blanks()
    for blank, said in zip(blanks, fill([(blank.text, blank.span) for blank in blanks]), strict=True):
        wanted = blank.text[slice(*blank.span)]
        is_right = said.replace(" ", "").casefold() == wanted.replace(" ", "").casefold()
        yield Verdict("fill-mask", blank.language, is_right, blank.text, said)


def sentiment_verdicts(sentiment: Callable[[Sequence[str]], Sequence[str]]) -> Iterator[Verdict]:
    """Is praise told from complaint?"""
    opinions = held_out_opinions()
    for opinion, said in zip(opinions, sentiment([one.text for one in opinions]), strict=True):
        yield Verdict("sentiment", opinion.language, said == LABELS[opinion.label], opinion.text, said)


def entity_verdicts(entities: Callable[[Sequence[str]], Sequence[Sequence[Entity]]]) -> Iterator[Verdict]:
    """Are all names of a text found, and nothing else, to the letter?"""
    texts = held_out_mentions()
    for text, said in zip(texts, entities([one.text for one in texts]), strict=True):
        yield Verdict("entities", text.language, sorted(said) == sorted(_entities(text)), text.text, said)


def answer_verdicts(answers: Callable[[Sequence[tuple[str, str]]], Sequence[str]]) -> Iterator[Verdict]:
    """Is the answer the very words of the text?"""
    passages = held_out_passages()
    asked = [(one.question, one.context) for one in passages]
    for passage, said in zip(passages, answers(asked), strict=True):
        yield Verdict("answers", passage.language, said == passage.answer, _asked(passage), said)


def judge(answerers: Answerers) -> list[Verdict]:
    """All four tasks."""
    return [
        *fill_verdicts(answerers.fill),
        *sentiment_verdicts(answerers.sentiment),
        *entity_verdicts(answerers.entities),
        *answer_verdicts(answerers.answers),
    ]


def table(verdicts: Sequence[Verdict]) -> str:
    """A line a task, a column a language."""
    asked = Counter((verdict.task, verdict.language) for verdict in verdicts)
    right = Counter((verdict.task, verdict.language) for verdict in verdicts if verdict.is_right)
    lines = [f"{'task':<12}" + "".join(f"{language:>18}" for language in LANGUAGES)]
    for task in dict.fromkeys(verdict.task for verdict in verdicts):
        cells = ((right[task, language], asked[task, language]) for language in LANGUAGES)
        lines.append(f"{task:<12}" + "".join(f"{r:>5} of {a:<3}{r / max(a, 1):>7.1%}" for r, a in cells))
    return "\n".join(lines)


def accuracy(verdicts: Sequence[Verdict]) -> float:
    """The share of right answers, all tasks together; 1 where nothing was asked."""
    return sum(verdict.is_right for verdict in verdicts) / len(verdicts) if verdicts else 1.0


def total(verdicts: Sequence[Verdict]) -> str:
    """The line below a table: all its tasks together."""
    right = sum(verdict.is_right for verdict in verdicts)
    return f"right: {right} of {len(verdicts)} ({accuracy(verdicts):.1%})"


def worst(verdicts: Sequence[Verdict]) -> float:
    """The accuracy of the task that does worst; 1 where nothing was asked."""
    tasks = {verdict.task for verdict in verdicts}
    shares = ([verdict.is_right for verdict in verdicts if verdict.task == task] for task in tasks)
    return min((sum(rights) / len(rights) for rights in shares), default=1.0)


def _entities(text: Tagged) -> list[Entity]:
    return [(mention.kind, mention.start, mention.end) for mention in text.mentions]


def _asked(passage: Passage) -> str:
    return f"{passage.question} | {passage.context}"
