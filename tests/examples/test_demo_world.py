"""The demo world keeps its promise: what is held out never occurs in training, and every question has an answer."""

import re
from collections import Counter
from random import Random

import pytest

from trefoil_demo import world
from trefoil_demo.facts import KINDS, LANGUAGES, facts

COUNT = 20_000
NUMERALS = "0-9零一二三四五六七八九十"


@pytest.fixture(scope="module")
def training_text() -> str:
    texts = [*world.documents(Random(1), COUNT)]
    texts += [message["content"] for chat in world.chats(Random(2), COUNT) for message in chat]
    return "\n".join(normal(text) for text in texts)


def normal(text: str) -> str:
    """What is left when letters' case, spaces and punctuation do not count, save the signs of sums."""
    return re.sub(r"[^\w+\-\n]", "", text.casefold())


def occurs(question: str, text: str) -> bool:
    """As a whole: 3 + 1 does not occur in 3 + 12."""
    plain = normal(question).replace("\n", "")
    if plain not in text:
        return False
    return re.search(rf"(?<![{NUMERALS}a-z]){re.escape(plain)}(?![{NUMERALS}a-z])", text) is not None


def test_held_out_questions_never_occur_in_training_text(training_text: str) -> None:
    asked = [question for question in world.held_out_questions() if question.kind != "story"]
    assert [q.messages[-1]["content"] for q in asked if occurs(q.messages[-1]["content"], training_text)] == []


def test_the_search_would_find_a_question_that_is_trained_on(training_text: str) -> None:
    assert occurs("What is the capital of Spain?", training_text) or occurs("Name the capital of Spain.", training_text)


def test_held_out_stories_never_occur_in_training_text(training_text: str) -> None:
    for question in world.held_out_questions():
        if question.kind == "story":
            assert normal(question.messages[-1]["content"]).replace("\n", "") not in training_text.replace("\n", "")
    for story in (world.training_story(Random(n), n % 2) for n in range(2000)):
        assert not any(person.is_held_out for person in story.people)
    for story in (world.held_out_story(Random(n), n % 2) for n in range(200)):
        assert all(person.is_held_out for person in story.people)


def test_every_fact_keeps_a_phrasing_for_training_and_is_stated(training_text: str) -> None:
    for fact in facts():
        for language in LANGUAGES:
            assert not all(world.is_held_out(fact, form, language) for form in KINDS[fact.kind].asks[language])
            stated = (fact.say(form, language) for form in KINDS[fact.kind].states[language])
            assert any(normal(text) in training_text for text in stated), fact


def test_same_seed_gives_same_text() -> None:
    assert [*world.documents(Random(7), 50)] == [*world.documents(Random(7), 50)]
    assert [*world.chats(Random(7), 50)] == [*world.chats(Random(7), 50)]
    assert world.held_out_questions() == world.held_out_questions()


def test_held_out_questions_are_many_of_every_kind_and_balanced() -> None:
    questions = world.held_out_questions()
    per_kind = Counter((question.kind, question.language) for question in questions)
    assert len(questions) >= 300
    assert set(per_kind) == {(kind, language) for kind in [*KINDS, "story"] for language in LANGUAGES}
    assert min(per_kind.values()) >= 10
    per_language = Counter(question.language for question in questions)
    assert max(per_language.values()) < 1.5 * min(per_language.values())
    texts = [question.messages[-1]["content"] for question in questions]
    assert len(set(texts)) == len(texts)


def test_the_worlds_own_answer_is_right_and_any_other_is_wrong() -> None:
    for fact in facts():
        for language in LANGUAGES:
            question = world._question(fact, KINDS[fact.kind].asks[language][0], language)
            assert world.is_right(question, fact.answer(language)), fact
            assert not world.is_right(question, f"{fact.answer(language)} {min(question.rivals)}"), fact
            assert not world.is_right(question, min(question.rivals)), fact


def test_numbers_count_only_as_whole_numbers() -> None:
    seven = world.Question("sum", "en", (), "7", frozenset({"1", "17"}))
    assert world.is_right(seven, "The answer is 7.")
    assert not world.is_right(seven, "The answer is 17.")


def test_chats_alternate_and_end_with_the_assistant() -> None:
    for chat in world.chats(Random(3), 500):
        roles = [message["role"] for message in chat if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message["content"].strip() for message in chat)
