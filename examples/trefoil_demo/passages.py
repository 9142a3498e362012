"""Texts of the demo world with questions and the span that answers: reading comprehension, and blanks to fill.

Held out are the questions that the decoder's test keeps too (phrasings of facts, stories of held-out people), and of
the statements one form in eight for each fact, whose key the test blanks out.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random

from trefoil_demo import world
from trefoil_demo.facts import KINDS, LANGUAGES, Fact, facts
from trefoil_demo.opinions import training_opinions
from trefoil_demo.stories import TRAITS, Story, held_out_story, training_story

FACT_KINDS = ("capital", "country", "colour", "opposite")
"""Those whose key is a word; sums are left to the decoder."""
HELD_OUT = 8
"""One statement in so many is held out."""
NUM_HELD_OUT = 120
"""Questions on texts of facts, and as many on stories, in each language."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A context, a question, and the span of the context that answers; None: the context has no answer."""

    question: str
    context: str
    span: tuple[int, int] | None
    language: str

    @property
    def answer(self) -> str:
        return self.context[slice(*self.span)] if self.span else ""


@dataclass(frozen=True, slots=True)
class Blank:
    """A statement, and the span of the word that the test hides."""

    text: str
    span: tuple[int, int]
    language: str


@cache
def word_facts() -> list[Fact]:
    """The facts whose key is a word."""
    return [fact for fact in facts() if fact.kind in FACT_KINDS]


def documents(rng: Random, count: int) -> Iterator[str]:
    """Plain texts for masked-LM training: statements that are not held out, stories, opinions."""
    known = word_facts()
    for _ in range(count):
        number = rng.randrange(len(LANGUAGES))
        kind = rng.random()
        if kind < 0.6:
            picked = rng.choices(known, k=rng.randint(2, 5))
            yield _join([rng.choice(_forms(fact, number, held_out=False)) for fact in picked], number)
        elif kind < 0.9:
            yield training_story(rng, number).text
        else:
            yield " ".join(opinion.text for opinion in training_opinions(rng, 2))


def training_blanks(rng: Random, count: int) -> Iterator[Blank]:
    """Statements that are not held out, with one of their words to hide: the key, or what the key belongs to."""
    known = word_facts()
    for _ in range(count):
        fact, number = rng.choice(known), rng.randrange(len(LANGUAGES))
        text, words = rng.choice(_forms(fact, number, held_out=False)), fact.slots[LANGUAGES[number]]
        word = rng.choice(list(words.values()))
        start = text.casefold().rfind(word.casefold())
        yield Blank(text, (start, start + len(word)), LANGUAGES[number])


def held_out_blanks() -> list[Blank]:
    """Every held-out statement with its key."""
    blanks = []
    for fact in word_facts():
        for number, language in enumerate(LANGUAGES):
            for text in _forms(fact, number, held_out=True):
                start = text.casefold().rfind(fact.key(language).casefold())
                blanks.append(Blank(text, (start, start + len(fact.key(language))), language))
    return blanks


def training_passages(rng: Random, count: int) -> Iterator[Passage]:
    """Questions on stories and on a few statements; one in ten has no answer there."""
    for _ in range(count):
        number = rng.randrange(len(LANGUAGES))
        if rng.random() < 0.6:
            passage = _on_story(rng, training_story(rng, number))
            other = training_story(rng, number)
        else:
            passage = _on_facts(rng, number, held_out=False)
            other = training_story(rng, number)
        yield _without_answer(passage, other) if rng.random() < 0.1 else passage


def held_out_passages() -> list[Passage]:
    """The same ones always."""
    rng = Random("held-out passages")
    passages = []
    for number in range(len(LANGUAGES)):
        passages += [_on_facts(rng, number, held_out=True) for _ in range(NUM_HELD_OUT)]
        passages += [_on_story(rng, held_out_story(rng, number)) for _ in range(NUM_HELD_OUT)]
    return passages


def _on_story(rng: Random, story: Story) -> Passage:
    """Ask for one trait of one person; it was told in the sentence of that number."""
    told = [(person, trait, value) for person in story.people for trait, value in person.told]
    number = rng.randrange(len(told))
    person, trait, value = told[number]
    who, word = person.name[story.language], value[story.language]
    question = rng.choice(TRAITS[trait].asks[story.language]).format(who=who)
    start, end = _sentences(story.text, story.language)[number]
    at = story.text.rfind(word, start, end)
    assert at >= 0, (story.text, word)
    return Passage(question, story.text, (at, at + len(word)), LANGUAGES[story.language])


def _on_facts(rng: Random, number: int, *, held_out: bool) -> Passage:
    """A few statements, and a question on one of them."""
    language = LANGUAGES[number]
    while True:
        picked = rng.sample(word_facts(), rng.randint(2, 5))
        fact = rng.choice(picked)
        asks = [f for f in KINDS[fact.kind].asks[language] if world.is_held_out(fact, f, language) == held_out]
        if asks and not _rivals(fact, picked, language):
            break
    lines = [rng.choice(_forms(one, number, held_out=False)) for one in picked]
    key, place = fact.key(language), picked.index(fact)
    before = len(_join(lines[:place], number)) + (1 if number == 0 and place else 0)
    at = lines[place].casefold().rfind(key.casefold())
    question = fact.say(rng.choice(asks), language)
    return Passage(question, _join(lines, number), (before + at, before + at + len(key)), language)


def _rivals(fact: Fact, picked: list[Fact], language: str) -> bool:
    """Would another statement answer the question as well?"""
    echoes = [fact.slots[language][slot] for slot in KINDS[fact.kind].echoes or ("thing",)]
    return any(one is not fact and set(echoes) & set(one.slots[language].values()) for one in picked)


def _without_answer(passage: Passage, other: Story) -> Passage:
    """The question beside a text that does not know, as far as its names tell; else as it was."""
    names = [person.name[other.language] for person in other.people]
    if any(name in passage.question for name in names):
        return passage
    return Passage(passage.question, other.text, None, passage.language)


def _forms(fact: Fact, number: int, *, held_out: bool) -> list[str]:
    """The fact stated in each form that ends up in training, or in those that do not."""
    language = LANGUAGES[number]
    texts = [fact.say(form, language) for form in KINDS[fact.kind].states[language]]
    return [text for text in texts if _is_held_out(text) == held_out]


def _is_held_out(statement: str) -> bool:
    return int.from_bytes(hashlib.sha256(statement.encode()).digest()[:8]) % HELD_OUT == 0


def _sentences(text: str, number: int) -> list[tuple[int, int]]:
    """Where each sentence begins and ends."""
    mark, spans, start = (". ", "。")[number], [], 0
    while start < len(text):
        at = text.find(mark, start)
        end = at + len(mark) if at >= 0 else len(text)
        spans.append((start, end))
        start = end
    return spans


def _join(lines: list[str], number: int) -> str:
    return (" " if number == 0 else "").join(lines)
