"""The demo world as text: documents for pre-training, chats for instruction tuning, and the held-out questions.

The split is by question. Every fact is stated in the documents of both languages, and asked in some phrasings; a
hash of (language, phrasing, fact) keeps the other phrasings of that very fact for the test, so a held-out question
never occurs in any training text, not even in other letters or with other punctuation. This tests whether the model
finds a fact it knows under a form of question it has seen only with other facts; it does not test facts it was never
told. For sums that means: 3 + 4 = 7 was stated, and asked in other words, but never asked in these words. Stories are
held out whole: the people of a held-out story (name, city, pet) appear in no training story in either language.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random

from trefoil_demo.facts import KINDS, LANGUAGES, Fact, facts
from trefoil_demo.small_talk import (
    GREETING_ANSWERS,
    GREETINGS,
    OUTSIDE,
    OUTSIDE_ANSWERS,
    STORY_ASKS,
    SYLLABLES,
    SYSTEM_PROMPTS,
    THANKS,
    THANKS_ANSWERS,
    TOPICS,
    UNKNOWN,
    WHO,
    WHO_ANSWERS,
)
from trefoil_demo.stories import TRAITS, Asked, Story, held_out_story, training_story

Message = dict[str, str]

HELD_OUT_OF = {"sum": 24, "difference": 24}
"""One phrasing of a fact in so many is held out; in eight for the kinds not named."""
NUM_HELD_OUT_STORIES = 60
"""For each language."""
WEIGHTS = {"capital": 4, "country": 3, "colour": 3, "opposite": 4, "sum": 8, "difference": 8}
"""How often each kind is talked of."""


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out question. A right answer contains `key` and none of `rivals`."""

    kind: str
    language: str
    messages: tuple[Message, ...]
    key: str
    rivals: frozenset[str]
    echoes: frozenset[str] = frozenset()


def is_right(question: Question, answer: str) -> bool:
    """Is the key there as a whole word, and nothing else of its kind, save what the question itself names?"""
    text = answer.casefold()
    if not _contains(text, question.key):
        return False
    for known in sorted({question.key, *question.echoes}, key=len, reverse=True):
        text = text.replace(known.casefold(), " ")
    return not any(_contains(text, rival) for rival in question.rivals)


def _contains(text: str, word: str) -> bool:
    """As a whole word where its letters are Latin or digits; anywhere in Chinese."""
    word = word.casefold()
    at = text.find(word)
    while at >= 0:
        around = text[max(0, at - 1) : at] + text[at + len(word) : at + len(word) + 1]
        if not word.isascii() or not any(c.isascii() and c.isalnum() for c in around):
            return True
        at = text.find(word, at + 1)
    return False


def is_held_out(fact: Fact, form: str, language: str) -> bool:
    """Is this phrasing of this fact kept for the test?"""
    digest = hashlib.sha256("|".join((language, form, fact.kind, fact.name)).encode()).digest()
    return int.from_bytes(digest[:8]) % HELD_OUT_OF.get(fact.kind, 8) == 0


def held_out_questions() -> list[Question]:
    """All held-out questions, always in the same order."""
    return [*_held_out_facts(), *_held_out_stories()]


def _held_out_facts() -> Iterator[Question]:
    for fact in facts():
        for language in LANGUAGES:
            for form in KINDS[fact.kind].asks[language]:
                if is_held_out(fact, form, language):
                    yield _question(fact, form, language)


def _question(fact: Fact, form: str, language: str) -> Question:
    kind = KINDS[fact.kind]
    key, echoes = fact.key(language), frozenset(fact.slots[language][slot] for slot in kind.echoes)
    rivals = _keys(fact.kind, language) - {key} - echoes
    return Question(fact.kind, language, (_user(fact.say(form, language)),), key, rivals, echoes)


def _held_out_stories() -> Iterator[Question]:
    rng = Random("held-out stories")
    for number, language in enumerate(LANGUAGES):
        for _ in range(NUM_HELD_OUT_STORIES):
            story = held_out_story(rng, number)
            asked = story.ask(rng)
            rivals = frozenset(value[number] for value in TRAITS[asked.trait].values) - {asked.key}
            yield Question("story", language, (_user(_story_prompt(rng, story, asked)),), asked.key, rivals)


@cache
def _facts_by_kind() -> dict[str, list[Fact]]:
    return {kind: [fact for fact in facts() if fact.kind == kind] for kind in KINDS}


@cache
def _keys(kind: str, language: str) -> frozenset[str]:
    return frozenset(fact.key(language) for fact in _facts_by_kind()[kind])


def documents(rng: Random, count: int) -> Iterator[str]:
    """Plain texts of a few lines each: facts in many phrasings, questions with answers, stories, both languages."""
    kinds = (_facts_document, _facts_document, _pairs_document, _story_document, _story_document)
    for _ in range(count):
        yield rng.choice(kinds)(rng, rng.randrange(len(LANGUAGES)))


def _facts_document(rng: Random, number: int) -> str:
    """Statements, some repeated as a question with its answer."""
    language = LANGUAGES[number]
    lines = []
    for fact in _draw_facts(rng, rng.randint(4, 8)):
        lines.append(fact.say(rng.choice(KINDS[fact.kind].states[language]), language))
        if rng.random() < 0.3:
            lines.append(
                _passage(fact.say(_training_form(rng, fact, language), language), fact.answer(language), number)
            )
    return "\n".join(lines)


def _pairs_document(rng: Random, number: int) -> str:
    """The same facts in one language and then in the other."""
    lines = []
    for fact in _draw_facts(rng, rng.randint(2, 4)):
        first, second = LANGUAGES[number], LANGUAGES[1 - number]
        lines += [fact.say(rng.choice(KINDS[fact.kind].states[language]), language) for language in (first, second)]
    return "\n".join(lines)


def _story_document(rng: Random, number: int) -> str:
    story = training_story(rng, number)
    asked = (story.ask(rng) for _ in range(rng.randint(1, 3)))
    return "\n".join([story.text, *(_passage(one.question, one.answer, number) for one in asked)])


def _passage(question: str, answer: str, number: int) -> str:
    marks = (("Question: ", "Answer: "), ("问：", "答："))[number]
    return f"{marks[0]}{question}\n{marks[1]}{answer}"


def _draw_facts(rng: Random, count: int) -> list[Fact]:
    """Of one kind, or of all."""
    kinds = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=1 if rng.random() < 0.5 else count)
    return [rng.choice(_facts_by_kind()[kinds[n % len(kinds)]]) for n in range(count)]


def _training_form(rng: Random, fact: Fact, language: str) -> str:
    """A phrasing that is not held out for this fact."""
    kind = KINDS[fact.kind]
    free = [form for form in kind.asks[language] if not is_held_out(fact, form, language)]
    return rng.choice([*free, *kind.open_asks[language]])


def chats(rng: Random, count: int) -> Iterator[list[Message]]:
    """Conversations of one to five questions, as messages."""
    kinds = {_facts_chat: 56, _story_chat: 26, _outside_chat: 10, _small_talk_chat: 7, _telling_chat: 1}
    for _ in range(count):
        chat = rng.choices(list(kinds), list(kinds.values()))[0]
        number = rng.randrange(len(LANGUAGES))
        yield [*_system(rng, number), *chat(rng, number)]


def _facts_chat(rng: Random, number: int) -> list[Message]:
    """Facts asked one after the other; a second of the same kind may be asked as a follow-up."""
    language = LANGUAGES[number]
    messages: list[Message] = []
    before: Fact | None = None
    for fact in _draw_facts(rng, rng.choice((1, 1, 2, 3, 4))):
        kind = KINDS[fact.kind]
        is_follow_up = before is not None and before.kind == fact.kind and rng.random() < 0.5
        form = rng.choice(kind.follow_ups[language]) if is_follow_up else _training_form(rng, fact, language)
        messages += _turn(_as_typed(rng, fact.say(form, language)), fact.answer(language))
        before = fact
    return messages


def _story_chat(rng: Random, number: int) -> list[Message]:
    story = training_story(rng, number)
    first = story.ask(rng)
    messages = _turn(_story_prompt(rng, story, first), first.answer)
    for _ in range(rng.choice((0, 0, 1, 2, 3))):
        further = story.ask(rng)
        messages += _turn(_as_typed(rng, further.question), further.answer)
    return messages


def _story_prompt(rng: Random, story: Story, asked: Asked) -> str:
    head = ("Read this story: ", "请读这个故事：")[story.language]
    layouts = (
        f"{story.text}\n\n{asked.question}",
        f"{story.text} {asked.question}",
        f"{head}{story.text}\n{asked.question}",
        f"{asked.question}\n\n{story.text}",
    )
    return rng.choice(layouts)


def _outside_chat(rng: Random, number: int) -> list[Message]:
    """A question that the world has no answer to."""
    form = rng.choice(OUTSIDE[LANGUAGES[number]])
    is_invented = rng.random() < 0.7
    invented = "".join(rng.choice(SYLLABLES)[number] for _ in range(rng.randint(2, 4))).capitalize()
    question = form.format(
        topic=rng.choice(TOPICS)[number],
        name=invented if is_invented else rng.choice(UNKNOWN)[number],
        big=rng.randint(21, 999),
        other=rng.randint(0, 99),
    )
    return _turn(_as_typed(rng, question), OUTSIDE_ANSWERS[number])


def _small_talk_chat(rng: Random, number: int) -> list[Message]:
    talks = ((GREETINGS, GREETING_ANSWERS), (WHO, WHO_ANSWERS), (THANKS, THANKS_ANSWERS))
    asks, answers = rng.choice(talks)
    messages = _turn(_as_typed(rng, rng.choice(asks[LANGUAGES[number]])), answers[number])
    return [*messages, *_facts_chat(rng, number)] if rng.random() < 0.3 else messages


def _telling_chat(rng: Random, number: int) -> list[Message]:
    """A story of the model's own."""
    return _turn(_as_typed(rng, rng.choice(STORY_ASKS[LANGUAGES[number]])), training_story(rng, number).text)


def _as_typed(rng: Random, question: str) -> str:
    """As people type: now and then without the mark at the end, without capitals, with a polite word before."""
    if rng.random() < 0.15:
        question = question.rstrip("?？.。!！ ")
    if rng.random() < 0.15:
        question = question.lower()
    if rng.random() < 0.2:
        question = question.replace(" + ", "+").replace(" - ", "-")
    if rng.random() < 0.08:
        question = ("Please: " if question.isascii() else "请问，") + question
    return question


def _system(rng: Random, number: int) -> list[Message]:
    return [{"role": "system", "content": SYSTEM_PROMPTS[number]}] if rng.random() < 0.15 else []


def _turn(question: str, answer: str) -> list[Message]:
    return [_user(question), {"role": "assistant", "content": answer}]


def _user(content: str) -> Message:
    return {"role": "user", "content": content}
