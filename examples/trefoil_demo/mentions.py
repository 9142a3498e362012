"""Sentences that name people and places of the demo world, with the spans of the names: for entity recognition.

A share of the people are invented, so that a name is known by where it stands; some invented names, and the stories of
held-out people, are kept for the test.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from trefoil_demo.facts import COUNTRIES, LANGUAGES
from trefoil_demo.opinions import training_opinions
from trefoil_demo.small_talk import SYLLABLES
from trefoil_demo.stories import CITIES, NAMES, held_out_story, training_story

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
HELD_OUT_NAMES = 5
NUM_HELD_OUT = 100
"""Sentences of the test in each language; as many again are stories."""
INVENTED = 0.4
FORMS: dict[str, tuple[str, ...]] = {
    "en": (
        "{who} flew from {city} to {other}.",
        "{who} and {friend} met in {city}.",
        "Yesterday {who} wrote a letter to {friend} from {country}.",
        "{city} is a big city in {country}.",
        "My friend {who} wants to visit {country}.",
        "Dear {who}, please come to {city}!",
        "{who} was born in {country} and works in {city}.",
        "My name is {who} and I live in {city}.",
        "Is {who} still in {country}?",
        "{friend} gave {who} a book about {country}.",
        "We saw {who} yesterday.",
        "In {city} it is raining, but in {other} it is not.",
    ),
    "zh": (
        "{who}从{city}飞到{other}。",
        "{who}和{friend}在{city}见面。",
        "昨天{who}从{country}给{friend}写了一封信。",
        "{city}是{country}的一个大城市。",
        "我的朋友{who}想去{country}。",
        "亲爱的{who}，请来{city}！",
        "{who}出生在{country}，在{city}工作。",
        "我叫{who}，我住在{city}。",
        "{who}还在{country}吗？",
        "{friend}给了{who}一本关于{country}的书。",
        "我们昨天见到了{who}。",
        "{city}在下雨，{other}没有下雨。",
    ),
}


@dataclass(frozen=True, slots=True)
class Mention:
    """A name's place in a text, and what it names: PER or LOC."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True, slots=True)
class Tagged:
    """A text with all names in it."""

    text: str
    mentions: tuple[Mention, ...]
    language: str


def training_mentions(rng: Random, count: int) -> Iterator[Tagged]:
    """Sentences, stories, and now and then a text that names nobody."""
    for _ in range(count):
        number = rng.randrange(len(LANGUAGES))
        kind = rng.random()
        if kind < 0.65:
            yield _typed(rng, _sentence(rng, number, held_out=False))
        elif kind < 0.9:
            yield _typed(rng, _tag(training_story(rng, number).text, (), LANGUAGES[number]))
        else:
            (opinion,) = training_opinions(rng, 1)
            yield _tag(opinion.text, (), opinion.language)


def held_out_mentions() -> list[Tagged]:
    """The same ones always: sentences with names that no training text has, and stories of held-out people."""
    rng = Random("held-out mentions")
    tagged = []
    for number, language in enumerate(LANGUAGES):
        tagged += [_sentence(rng, number, held_out=True) for _ in range(NUM_HELD_OUT)]
        tagged += [_tag(held_out_story(rng, number).text, (), language) for _ in range(NUM_HELD_OUT)]
    return tagged


def _sentence(rng: Random, number: int, *, held_out: bool) -> Tagged:
    people = [_person(rng, number, held_out=held_out) for _ in range(2)]
    city, other = (words[number] for words in rng.sample(CITIES, 2))
    country = rng.choice(COUNTRIES)[0][number]
    # a sentence is held out by its names, so one that names nobody cannot be
    form = rng.choice([form for form in FORMS[LANGUAGES[number]] if "{who}" in form or not held_out])
    text = form.format(who=people[0], friend=people[1], city=city, other=other, country=country)
    return _tag(text, people, LANGUAGES[number])


def _person(rng: Random, number: int, *, held_out: bool) -> str:
    if not held_out and rng.random() > INVENTED:
        return rng.choice(NAMES)[0][number]
    while True:
        name = "".join(rng.choice(SYLLABLES)[number] for _ in range(rng.randint(2, 3))).capitalize()
        if _is_held_out(name) == held_out:
            return name


def _is_held_out(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % HELD_OUT_NAMES == 0


def _tag(text: str, people: tuple[str, ...] | list[str], language: str) -> Tagged:
    """Find every name in the text, the longest first."""
    number = LANGUAGES.index(language)
    kinds = {words[number]: "LOC" for pair in COUNTRIES for words in pair}
    kinds |= {name[number]: "PER" for name, _ in NAMES} | dict.fromkeys(people, "PER")
    names = "|".join(re.escape(name) for name in sorted(kinds, key=len, reverse=True))
    pattern = rf"\b(?:{names})\b" if language == "en" else names
    found = (Mention(m.start(), m.end(), kinds[m[0]]) for m in re.finditer(pattern, text))
    return Tagged(text, tuple(found), language)


def _typed(rng: Random, tagged: Tagged) -> Tagged:
    """Now and then without capitals, which moves nothing."""
    return Tagged(tagged.text.lower(), tagged.mentions, tagged.language) if rng.random() < 0.2 else tagged
