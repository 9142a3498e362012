"""What people of the demo world think of things: sentences that praise or complain, in English and Chinese.

A hash of (language, form, thing, word) keeps some sentences for the test; the words and forms all occur in training.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from random import Random

from trefoil_demo.facts import LANGUAGES, Words
from trefoil_demo.stories import FOODS, NAMES

LABELS = ("negative", "positive")
HELD_OUT = 12
"""One sentence in so many is held out."""
NUM_HELD_OUT = 150
"""Of these the test takes so many in each language."""

THINGS: tuple[Words, ...] = (
    ("the movie", "这部电影"),
    ("the film", "这个片子"),
    ("the book", "这本书"),
    ("the story", "这个故事"),
    ("the song", "这首歌"),
    ("the music", "这音乐"),
    ("the game", "这个游戏"),
    ("the food", "这里的菜"),
    ("the restaurant", "这家餐厅"),
    ("the hotel", "这家酒店"),
    ("the room", "这个房间"),
    ("the service", "这里的服务"),
    ("the weather", "今天的天气"),
    ("the day", "这一天"),
    ("the trip", "这次旅行"),
    ("the city", "这个城市"),
    ("the school", "这所学校"),
    ("the house", "这个房子"),
    ("the phone", "这个手机"),
    ("the car", "这辆车"),
    ("this product", "这个产品"),
    ("this place", "这个地方"),
    *FOODS,
)
WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "en": (
        (
            *("bad", "terrible", "awful", "horrible", "boring", "ugly", "disappointing", "poor", "dreadful", "nasty"),
            *("dull", "disgusting", "useless", "unpleasant", "annoying"),
        ),
        (
            *("good", "great", "wonderful", "excellent", "lovely", "beautiful", "amazing", "nice", "fantastic"),
            *("perfect", "pleasant", "interesting", "brilliant", "delightful", "enjoyable"),
        ),
    ),
    "zh": (
        ("差", "糟糕", "可怕", "无聊", "难看", "讨厌", "烂", "恶心", "没用", "失败", "让人失望", "无趣"),
        ("好", "棒", "精彩", "优秀", "可爱", "美丽", "完美", "有趣", "出色", "舒服", "不错", "让人开心"),
    ),
}
"""By language: words of complaint, words of praise."""
VERBS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "en": (("hate", "dislike", "can not stand", "do not like", "regret"), ("love", "like", "enjoy", "adore", "admire")),
    "zh": (("讨厌", "不喜欢", "恨", "受不了", "不爱"), ("喜欢", "爱", "很喜欢", "非常爱", "享受")),
}
FORMS: dict[str, tuple[str, ...]] = {
    "en": (
        "{thing} is {word}.",
        "{thing} was really {word}!",
        "I think {thing} is {word}.",
        "I found {thing} very {word}.",
        "{who} says that {thing} is {word}.",
        "How {word} {thing} was!",
        "{thing} is so {word}",
    ),
    "zh": (
        "{thing}很{word}。",
        "{thing}真{word}！",
        "我觉得{thing}非常{word}。",
        "{who}说{thing}很{word}。",
        "{thing}太{word}了！",
        "{thing}特别{word}",
    ),
}
DENIALS: dict[str, tuple[str, ...]] = {
    "en": ("{thing} is not {word}.", "{thing} was not {word} at all.", "I do not think that {thing} is {word}."),
    "zh": ("我不觉得{thing}{word}。", "{thing}一点也不{word}。"),
}
"""These turn the word into its contrary."""
LIKINGS: dict[str, tuple[str, ...]] = {
    "en": ("I {word} {thing}.", "I {word} {thing} so much!", "We really {word} {thing}."),
    "zh": ("我{word}{thing}。", "我们都{word}{thing}。", "我真的{word}{thing}！"),
}


@dataclass(frozen=True, slots=True)
class Opinion:
    """A sentence with its label's number in LABELS."""

    text: str
    label: int
    language: str


def training_opinions(rng: Random, count: int) -> Iterator[Opinion]:
    """Opinions that are not held out, as people type them."""
    for opinion in rng.choices(_opinions(held_out=False), k=count):
        yield replace(opinion, text=_as_typed(rng, _said(rng, opinion)))


def held_out_opinions() -> list[Opinion]:
    """The same ones always."""
    rng = Random("held-out opinions")
    kept = [one for language in LANGUAGES for one in _draw(rng, language)]
    return [replace(one, text=_said(rng, one)) for one in kept]


def _draw(rng: Random, language: str) -> list[Opinion]:
    return rng.sample([one for one in _opinions(held_out=True) if one.language == language], NUM_HELD_OUT)


@cache
def _opinions(*, held_out: bool) -> list[Opinion]:
    """All of them, with {who} where somebody speaks."""
    return [one for one in _all() if _is_held_out(one) == held_out]


def _all() -> Iterator[Opinion]:
    for number, language in enumerate(LANGUAGES):
        for forms, words, turns in ((FORMS, WORDS, 0), (DENIALS, WORDS, 1), (LIKINGS, VERBS, 0)):
            for form, thing, label in product(forms[language], THINGS, range(2)):
                for word in words[language][label]:
                    text = form.format(thing=thing[number], word=word, who="{who}")
                    yield Opinion(text[0].upper() + text[1:], abs(label - turns), language)


def _said(rng: Random, opinion: Opinion) -> str:
    """With a name for whoever speaks."""
    return opinion.text.replace("{who}", rng.choice(NAMES)[0][LANGUAGES.index(opinion.language)])


def _is_held_out(opinion: Opinion) -> bool:
    return int.from_bytes(hashlib.sha256(opinion.text.encode()).digest()[:8]) % HELD_OUT == 0


def _as_typed(rng: Random, text: str) -> str:
    """Now and then without the mark at the end, or without capitals."""
    text = text.rstrip(".!。！") if rng.random() < 0.2 else text
    return text.lower() if rng.random() < 0.2 else text
