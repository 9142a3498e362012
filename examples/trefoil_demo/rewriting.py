"""Text-to-text examples of the demo world: translation both ways, summaries, sentiment, questions, gaps.

Held out are new combinations of known words: one sentence in eight is never shown with its translation, in either
direction; summaries are of stories of held-out people; opinions, questions and gaps are those of the encoders' test.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from trefoil_demo import passages
from trefoil_demo.facts import COUNTRIES, KINDS, LANGUAGES, Words, facts
from trefoil_demo.mentions import FORMS
from trefoil_demo.opinions import LABELS, held_out_opinions, training_opinions
from trefoil_demo.passages import (
    Blank,
    Passage,
    held_out_blanks,
    held_out_passages,
    training_blanks,
    training_passages,
)
from trefoil_demo.stories import (
    ALWAYS_TOLD,
    CITIES,
    NAMES,
    OPTIONAL,
    TRAITS,
    Story,
    held_out_story,
    retold,
    training_crowd,
    training_story,
)
from trefoil_demo.understanding import Verdict

HELD_OUT = 8
"""One sentence in so many is held out from translation."""
NUM_HELD_OUT = 120
"""Translations from each language, and summaries in each, that the test takes."""
TRANSLATE: Words = ("translate English to Chinese: ", "translate Chinese to English: ")
SUMMARIZE = "summarize: "
SENTIMENT = "sentiment: "

ALIKE: dict[str, tuple[tuple[int, int], ...]] = {
    "capital": ((0, 0), (1, 1), (2, 2)),
    "colour": ((0, 1), (1, 0), (2, 3), (3, 2)),
    "opposite": ((0, 0), (3, 3)),
}
"""Which statement of a kind says the same in English and in Chinese, by their places."""
SUMMARY: Words = ("{who} lives in {city} and has {pet}.", "{who}住在{city}，有{pet}。")
JOINS: Words = (" ", "")
"""What stands between two sentences."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A text with its task's prefix, what should come of it, and the language it is in."""

    task: str
    language: str
    source: str
    target: str


def training_rewrites(rng: Random, count: int) -> Iterator[Rewrite]:
    """Examples of every task in turn, none held out."""
    kinds: dict[Callable[[Random], Rewrite], int] = {
        _translation: 28,
        _summary: 6,
        _crowd_summary: 10,
        _sentiment: 8,
        _answer: 16,
        _crowd_answer: 32,
        _gap: 8,
    }
    for kind in rng.choices(list(kinds), list(kinds.values()), k=count):
        yield kind(rng)


def held_out_rewrites() -> list[Rewrite]:
    """The same ones always, task by task."""
    rng = Random("held-out rewrites")
    kept = [_translated(_sentences(rng, held_out=True), n) for n in range(len(LANGUAGES)) for _ in range(NUM_HELD_OUT)]
    kept += [_summed(held_out_story(rng, n)) for n in range(len(LANGUAGES)) for _ in range(NUM_HELD_OUT)]
    kept += [_judged(opinion.text, opinion.label, opinion.language) for opinion in held_out_opinions()]
    kept += [_answered(passage) for passage in held_out_passages()]
    return kept + [_gapped(blank) for blank in held_out_blanks()]


def judge(answers: Callable[[Sequence[str]], Sequence[str]]) -> list[Verdict]:
    """Is each answer the wanted text, capitals aside? Of a gap its first span counts."""
    rewrites = held_out_rewrites()
    said = answers([rewrite.source for rewrite in rewrites])
    return [
        Verdict(one.task, one.language, _core(own) == _core(one.target), one.source, own)
        for one, own in zip(rewrites, said, strict=True)
    ]


def _core(answer: str) -> str:
    return answer.removeprefix("<extra_id_0>").partition("<extra_id_1>")[0].strip().casefold()


def documents(rng: Random, count: int) -> Iterator[str]:
    """Plain texts to take spans out of: the encoders' documents, stories told twice, sentences with their translations.

    What is missing of a story stands in the other telling, beside the same name.
    """
    for _ in range(count):
        kind = rng.random()
        if kind < 0.4:
            yield from passages.documents(rng, 1)
        elif kind < 0.7:
            story = training_crowd(rng, rng.randrange(len(LANGUAGES)), rng.sample(list(TRAITS), rng.randint(1, 2)))
            yield JOINS[story.language].join((story.text, retold(rng, story).text))
        else:
            first = rng.randrange(len(LANGUAGES))
            pair = _sentence(rng, held_out=False)
            yield f"{pair[first]} {pair[1 - first]}"


def _translation(rng: Random) -> Rewrite:
    return _translated(_sentences(rng, held_out=False), rng.randrange(len(LANGUAGES)))


def _summary(rng: Random) -> Rewrite:
    return _summed(training_story(rng, rng.randrange(len(LANGUAGES))))


def _crowd_summary(rng: Random) -> Rewrite:
    traits = [*ALWAYS_TOLD, *rng.sample(OPTIONAL, rng.randint(0, 1))]
    return _summed(training_crowd(rng, rng.randrange(len(LANGUAGES)), traits))


def _sentiment(rng: Random) -> Rewrite:
    (opinion,) = training_opinions(rng, 1)
    return _judged(opinion.text, opinion.label, opinion.language)


def _answer(rng: Random) -> Rewrite:
    while True:
        (passage,) = training_passages(rng, 1)
        if passage.span is not None:
            return _answered(passage)


def _crowd_answer(rng: Random) -> Rewrite:
    """Asked where others have an answer of their own, so that none is right but by whose it is.

    Beside stories alone, where every second question can be answered without, the model never learned to look at names.
    """
    traits = rng.sample(list(TRAITS), rng.randint(1, 3))
    story = training_crowd(rng, rng.randrange(len(LANGUAGES)), traits)
    asked = story.ask(rng)
    return _asked(asked.question, story.text, asked.key, LANGUAGES[story.language])


def _gap(rng: Random) -> Rewrite:
    (blank,) = training_blanks(rng, 1)
    return _gapped(blank)


def _translated(pair: Words, number: int) -> Rewrite:
    return Rewrite("translate", LANGUAGES[number], TRANSLATE[number] + pair[number], pair[1 - number])


def _summed(story: Story) -> Rewrite:
    """Where everybody lives, and with which pet."""
    number, lines = story.language, []
    for person in story.people:
        told = {trait: value[number] for trait, value in person.told}
        lines.append(SUMMARY[number].format(who=person.name[number], city=told["city"], pet=told["pet"]))
    return Rewrite("summarize", LANGUAGES[number], SUMMARIZE + story.text, JOINS[number].join(lines))


def _judged(text: str, label: int, language: str) -> Rewrite:
    return Rewrite("sentiment", language, SENTIMENT + text, LABELS[label])


def _answered(passage: Passage) -> Rewrite:
    return _asked(passage.question, passage.context, passage.answer, passage.language)


def _asked(question: str, context: str, answer: str, language: str) -> Rewrite:
    return Rewrite("question", language, f"question: {question} context: {context}", answer)


def _gapped(blank: Blank) -> Rewrite:
    """T5's own way to ask: a sentinel in the gap, and in the answer one before what stood there and one behind."""
    start, end = blank.span
    source = blank.text[:start] + "<extra_id_0>" + blank.text[end:]
    return Rewrite("gap", blank.language, source, f"<extra_id_0> {blank.text[start:end]}<extra_id_1>")


def _sentences(rng: Random, *, held_out: bool) -> Words:
    """One sentence in each language, or two."""
    told = [_sentence(rng, held_out=held_out) for _ in range(rng.choice((1, 1, 2)))]
    english, chinese = (JOINS[number].join(pair[number] for pair in told) for number in range(len(LANGUAGES)))
    return english, chinese


def _sentence(rng: Random, *, held_out: bool) -> Words:
    """In each language: what a story tells, a fact, or who was where."""
    while True:
        pair = rng.choice((_telling, _stating, _mentioning))(rng)
        if _is_held_out(pair) == held_out:
            return pair


def _telling(rng: Random) -> Words:
    trait = TRAITS[rng.choice(list(TRAITS))]
    form = rng.choice(list(zip(*trait.tells, strict=True)))
    return _said(form, who=rng.choice(NAMES)[0], value=rng.choice(trait.values))


def _stating(rng: Random) -> Words:
    fact = rng.choice(STATED)
    places = rng.choice(ALIKE[fact.kind])
    english, chinese = (
        fact.say(KINDS[fact.kind].states[language][place], language)
        for language, place in zip(LANGUAGES, places, strict=True)
    )
    return english, chinese


def _mentioning(rng: Random) -> Words:
    form = rng.choice(list(zip(*FORMS.values(), strict=True)))
    (who, _), (friend, _) = rng.sample(NAMES, 2)
    city, other = rng.sample(CITIES, 2)
    return _said(form, who=who, friend=friend, city=city, other=other, country=rng.choice(COUNTRIES)[0])


STATED = [fact for fact in facts() if fact.kind in ALIKE]


def _said(form: Words, **slots: Words) -> Words:
    english, chinese = (form[n].format(**{slot: words[n] for slot, words in slots.items()}) for n in range(2))
    return english[0].upper() + english[1:], chinese


def _is_held_out(pair: Words) -> bool:
    return int.from_bytes(hashlib.sha256(pair[0].encode()).digest()[:8]) % HELD_OUT == 0
