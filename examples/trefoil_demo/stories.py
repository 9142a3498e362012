"""Invented people and the short stories told of them, with the questions that a story answers.

Who a person is follows from name, city and pet, which every story tells. Some of these triples are kept for the
held-out questions: no story of theirs is ever told in training, in either language.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from trefoil_demo.facts import COLOURS, COUNTRIES, Words

HELD_OUT_PEOPLE = 10
"""One triple in so many is held out."""

CITIES: tuple[Words, ...] = tuple(capital for _, capital in COUNTRIES)
PAINTS: tuple[Words, ...] = tuple(COLOURS.values())
NAMES: tuple[tuple[Words, Words], ...] = (
    (("Mia", "米娅"), ("she", "她")),
    (("Lily", "莉莉"), ("she", "她")),
    (("Anna", "安娜"), ("she", "她")),
    (("Emma", "艾玛"), ("she", "她")),
    (("Lucy", "露西"), ("she", "她")),
    (("Nina", "妮娜"), ("she", "她")),
    (("Sara", "萨拉"), ("she", "她")),
    (("Xiaohong", "小红"), ("she", "她")),
    (("Xiaoli", "小丽"), ("she", "她")),
    (("Meimei", "梅梅"), ("she", "她")),
    (("Tom", "汤姆"), ("he", "他")),
    (("Jack", "杰克"), ("he", "他")),
    (("Ben", "本杰明"), ("he", "他")),
    (("Leo", "里奥"), ("he", "他")),
    (("Paul", "保罗"), ("he", "他")),
    (("David", "大卫"), ("he", "他")),
    (("Peter", "彼得"), ("he", "他")),
    (("Xiaoming", "小明"), ("he", "他")),
    (("Xiaogang", "小刚"), ("he", "他")),
    (("Dawei", "大伟"), ("he", "他")),
)
"""Each name and its pronoun."""

PETS: tuple[Words, ...] = (
    ("a cat", "一只猫"),
    ("a dog", "一条狗"),
    ("a rabbit", "一只兔子"),
    ("a parrot", "一只鹦鹉"),
    ("a hamster", "一只仓鼠"),
    ("a turtle", "一只乌龟"),
    ("a goldfish", "一条金鱼"),
    ("a pony", "一匹小马"),
    ("a duck", "一只鸭子"),
    ("a goat", "一只山羊"),
)
JOBS: tuple[Words, ...] = (
    ("a teacher", "老师"),
    ("a doctor", "医生"),
    ("a baker", "面包师"),
    ("a farmer", "农民"),
    ("a painter", "画家"),
    ("a driver", "司机"),
    ("a singer", "歌手"),
    ("a writer", "作家"),
    ("a nurse", "护士"),
    ("a cook", "厨师"),
)
FOODS: tuple[Words, ...] = (
    ("noodles", "面条"),
    ("rice", "米饭"),
    ("soup", "汤"),
    ("bread", "面包"),
    ("cheese", "奶酪"),
    ("dumplings", "饺子"),
    ("cake", "蛋糕"),
    ("eggs", "鸡蛋"),
    ("apples", "苹果"),
    ("fish", "鱼"),
)


@dataclass(frozen=True, slots=True)
class Trait:
    """One thing a story tells of a person: what it may be, and how it is told, asked and answered in each language."""

    values: tuple[Words, ...]
    tells: tuple[tuple[str, ...], tuple[str, ...]]
    asks: tuple[tuple[str, ...], tuple[str, ...]]
    answer: Words


TRAITS: dict[str, Trait] = {
    "city": Trait(
        CITIES,
        (("{who} lives in {value}.", "{who} has a house in {value}."), ("{who}住在{value}。", "{who}的家在{value}。")),
        (
            ("Where does {who} live?", "In which city does {who} live?", "What city does {who} live in?"),
            ("{who}住在哪里？", "{who}住在哪个城市？", "{who}的家在哪里？"),
        ),
        ("{who} lives in {value}.", "{who}住在{value}。"),
    ),
    "pet": Trait(
        PETS,
        (("{who} has {value}.", "At home {who} keeps {value}."), ("{who}有{value}。", "{who}家里养了{value}。")),
        (
            ("What pet does {who} have?", "Which animal does {who} have?", "What animal does {who} keep?"),
            ("{who}有什么宠物？", "{who}养了什么动物？", "{who}的宠物是什么？"),
        ),
        ("{who} has {value}.", "{who}有{value}。"),
    ),
    "colour": Trait(
        PAINTS,
        (
            ("{who} likes the colour {value} best.", "{who} thinks that {value} is the nicest colour."),
            ("{who}最喜欢的颜色是{value}。", "{who}最喜欢{value}。"),
        ),
        (
            (
                "What is {who}'s favourite colour?",
                "What is {who}'s favorite color?",
                "Which colour does {who} like best?",
            ),
            ("{who}最喜欢什么颜色？", "{who}最喜欢的颜色是什么？", "{who}喜欢哪种颜色？"),
        ),
        ("{who}'s favourite colour is {value}.", "{who}最喜欢的颜色是{value}。"),
    ),
    "job": Trait(
        JOBS,
        (("{who} works as {value}.", "{who} is {value}."), ("{who}是一名{value}。", "{who}的工作是{value}。")),
        (
            ("What is {who}'s job?", "What does {who} do for a living?", "What work does {who} do?"),
            ("{who}的工作是什么？", "{who}是做什么工作的？", "{who}的职业是什么？"),
        ),
        ("{who} is {value}.", "{who}是一名{value}。"),
    ),
    "food": Trait(
        FOODS,
        (
            ("{who} likes to eat {value}.", "{who} eats {value} every day."),
            ("{who}爱吃{value}。", "{who}每天都吃{value}。"),
        ),
        (
            ("What does {who} like to eat?", "What is {who}'s favourite food?", "Which food does {who} like?"),
            ("{who}喜欢吃什么？", "{who}爱吃什么？", "{who}最喜欢的食物是什么？"),
        ),
        ("{who} likes to eat {value}.", "{who}爱吃{value}。"),
    ),
}
ALWAYS_TOLD = ("city", "pet")
OPTIONAL = ("colour", "job", "food")


@dataclass(frozen=True, slots=True)
class Person:
    """An invented person: a name with its pronoun, and what the story tells, trait by trait."""

    name: Words
    pronoun: Words
    told: tuple[tuple[str, Words], ...]

    @property
    def is_held_out(self) -> bool:
        told = dict(self.told)
        identity = "|".join((self.name[0], told["city"][0], told["pet"][0]))
        return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8]) % HELD_OUT_PEOPLE == 0


@dataclass(frozen=True, slots=True)
class Story:
    """Sentences about one person or two, in the language of that number in LANGUAGES."""

    people: tuple[Person, ...]
    language: int
    text: str

    def ask(self, rng: Random) -> "Asked":
        """A question about one of the people."""
        person = rng.choice(self.people)
        trait, value = rng.choice(person.told)
        form = rng.choice(TRAITS[trait].asks[self.language])
        return Asked(
            trait=trait,
            question=_say(form, person.name[self.language], value[self.language]),
            answer=_say(TRAITS[trait].answer[self.language], person.name[self.language], value[self.language]),
            key=value[self.language],
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that a story answers, a good answer, and the word that makes an answer right."""

    trait: str
    question: str
    answer: str
    key: str


def training_story(rng: Random, language: int) -> Story:
    """A story none of whose people is held out."""
    return _draw(rng, language, held_out=False)


def training_crowd(rng: Random, language: int, traits: Sequence[str]) -> Story:
    """Two or three people, none held out, told the same of in any order: only the names say whose a sentence is."""
    names = rng.sample(NAMES, 2 if len(traits) > 2 else rng.choice((2, 3)))
    return _mingled(rng, [_draw_one_of_many(rng, *name, traits) for name in names], language)


def retold(rng: Random, story: Story) -> Story:
    """The same people in another order and other words."""
    return _mingled(rng, story.people, story.language)


def _mingled(rng: Random, people: Sequence[Person], language: int) -> Story:
    tellings = [(person, trait, value) for person in people for trait, value in person.told]
    if rng.random() < 0.7:
        rng.shuffle(tellings)
    sentences = [
        _say(rng.choice(TRAITS[trait].tells[language]), person.name[language], value[language])
        for person, trait, value in tellings
    ]
    in_order = tuple(dict.fromkeys(person for person, _, _ in tellings))
    return Story(in_order, language, _joined(sentences, language))


def _draw_one_of_many(rng: Random, name: Words, pronoun: Words, traits: Sequence[str]) -> Person:
    """Not held out, and told only these traits of."""
    while True:
        person = Person(name, pronoun, tuple((trait, rng.choice(TRAITS[trait].values)) for trait in TRAITS))
        if not person.is_held_out:
            told = dict(person.told)
            return replace(person, told=tuple((trait, told[trait]) for trait in rng.sample(traits, len(traits))))


def held_out_story(rng: Random, language: int) -> Story:
    """A story all of whose people are held out."""
    return _draw(rng, language, held_out=True)


def _draw(rng: Random, language: int, *, held_out: bool) -> Story:
    names = rng.sample(NAMES, rng.choice((1, 2)))
    people = tuple(_draw_person(rng, *name, most=2 // len(names), held_out=held_out) for name in names)
    return Story(people, language, _tell(rng, people, language))


def _draw_person(rng: Random, name: Words, pronoun: Words, *, most: int, held_out: bool) -> Person:
    while True:
        traits = [*ALWAYS_TOLD, *rng.sample(OPTIONAL, rng.randint(0, most) if most < 2 else rng.randint(1, 3))]
        rng.shuffle(traits)
        person = Person(name, pronoun, tuple((trait, rng.choice(TRAITS[trait].values)) for trait in traits))
        if person.is_held_out == held_out:
            return person


def _tell(rng: Random, people: tuple[Person, ...], language: int) -> str:
    """Person after person; one alone in a story may become a pronoun after the first sentence."""
    sentences = []
    for person in people:
        for n, (trait, value) in enumerate(person.told):
            is_pronoun = n > 0 and len(people) == 1 and rng.random() < 0.6
            who = person.pronoun[language] if is_pronoun else person.name[language]
            sentences.append(_say(rng.choice(TRAITS[trait].tells[language]), who, value[language]))
    return _joined(sentences, language)


def _joined(sentences: list[str], language: int) -> str:
    return (" " if language == 0 else "").join(sentences)


def _say(form: str, who: str, value: str) -> str:
    text = form.format(who=who, value=value)
    return text[0].upper() + text[1:]
