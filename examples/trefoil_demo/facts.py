"""What is true in the demo world, and the forms in which it is said and asked, in English and Chinese; data only."""

from dataclasses import dataclass
from itertools import chain

LANGUAGES = ("en", "zh")
LIMIT = 20
"""Sums stay up to this number."""

Words = tuple[str, str]
"""One thing's name in each of LANGUAGES."""

COUNTRIES: tuple[tuple[Words, Words], ...] = (
    (("France", "法国"), ("Paris", "巴黎")),
    (("Germany", "德国"), ("Berlin", "柏林")),
    (("Italy", "意大利"), ("Rome", "罗马")),
    (("Spain", "西班牙"), ("Madrid", "马德里")),
    (("Portugal", "葡萄牙"), ("Lisbon", "里斯本")),
    (("Greece", "希腊"), ("Athens", "雅典")),
    (("Poland", "波兰"), ("Warsaw", "华沙")),
    (("Austria", "奥地利"), ("Vienna", "维也纳")),
    (("Hungary", "匈牙利"), ("Budapest", "布达佩斯")),
    (("Norway", "挪威"), ("Oslo", "奥斯陆")),
    (("Sweden", "瑞典"), ("Stockholm", "斯德哥尔摩")),
    (("Finland", "芬兰"), ("Helsinki", "赫尔辛基")),
    (("Denmark", "丹麦"), ("Copenhagen", "哥本哈根")),
    (("Ireland", "爱尔兰"), ("Dublin", "都柏林")),
    (("Russia", "俄罗斯"), ("Moscow", "莫斯科")),
    (("China", "中国"), ("Beijing", "北京")),
    (("Japan", "日本"), ("Tokyo", "东京")),
    (("Thailand", "泰国"), ("Bangkok", "曼谷")),
    (("Vietnam", "越南"), ("Hanoi", "河内")),
    (("India", "印度"), ("New Delhi", "新德里")),
    (("Turkey", "土耳其"), ("Ankara", "安卡拉")),
    (("Iran", "伊朗"), ("Tehran", "德黑兰")),
    (("Egypt", "埃及"), ("Cairo", "开罗")),
    (("Kenya", "肯尼亚"), ("Nairobi", "内罗毕")),
    (("Canada", "加拿大"), ("Ottawa", "渥太华")),
    (("Cuba", "古巴"), ("Havana", "哈瓦那")),
    (("Peru", "秘鲁"), ("Lima", "利马")),
    (("Chile", "智利"), ("Santiago", "圣地亚哥")),
    (("Argentina", "阿根廷"), ("Buenos Aires", "布宜诺斯艾利斯")),
    (("Australia", "澳大利亚"), ("Canberra", "堪培拉")),
)
"""Each country and its capital."""

COLOURS: dict[str, Words] = {
    english: (english, chinese)
    for english, chinese in (
        ("red", "红色"),
        ("orange", "橙色"),
        ("yellow", "黄色"),
        ("green", "绿色"),
        ("blue", "蓝色"),
        ("purple", "紫色"),
        ("pink", "粉色"),
        ("brown", "棕色"),
        ("black", "黑色"),
        ("white", "白色"),
        ("grey", "灰色"),
        ("gold", "金色"),
    )
}

THINGS: tuple[tuple[Words, str], ...] = (
    (("snow", "雪"), "white"),
    (("milk", "牛奶"), "white"),
    (("salt", "盐"), "white"),
    (("grass", "草"), "green"),
    (("a frog", "青蛙"), "green"),
    (("a cucumber", "黄瓜"), "green"),
    (("the sky", "天空"), "blue"),
    (("the sea", "大海"), "blue"),
    (("blood", "血"), "red"),
    (("a tomato", "西红柿"), "red"),
    (("a fire engine", "消防车"), "red"),
    (("a strawberry", "草莓"), "red"),
    (("a banana", "香蕉"), "yellow"),
    (("a lemon", "柠檬"), "yellow"),
    (("the sun", "太阳"), "yellow"),
    (("coal", "煤"), "black"),
    (("a crow", "乌鸦"), "black"),
    (("a carrot", "胡萝卜"), "orange"),
    (("a pumpkin", "南瓜"), "orange"),
    (("chocolate", "巧克力"), "brown"),
    (("an elephant", "大象"), "grey"),
    (("a pig", "小猪"), "pink"),
    (("an aubergine", "茄子"), "purple"),
    (("a plum", "李子"), "purple"),
    (("a crown", "王冠"), "gold"),
)
"""Each thing and its colour."""

OPPOSITES: tuple[tuple[Words, Words], ...] = (
    (("hot", "热"), ("cold", "冷")),
    (("big", "大"), ("small", "小")),
    (("long", "长"), ("short", "短")),
    (("fast", "快"), ("slow", "慢")),
    (("high", "高"), ("low", "低")),
    (("new", "新"), ("old", "旧")),
    (("good", "好"), ("bad", "坏")),
    (("happy", "快乐"), ("sad", "悲伤")),
    (("rich", "富"), ("poor", "穷")),
    (("strong", "强"), ("weak", "弱")),
    (("light", "轻"), ("heavy", "重")),
    (("bright", "亮"), ("dark", "暗")),
    (("open", "开"), ("closed", "关")),
    (("full", "满"), ("empty", "空")),
    (("wet", "湿"), ("dry", "干")),
    (("clean", "干净"), ("dirty", "脏")),
    (("hard", "硬"), ("soft", "软")),
    (("thick", "厚"), ("thin", "薄")),
    (("wide", "宽"), ("narrow", "窄")),
    (("deep", "深"), ("shallow", "浅")),
    (("near", "近"), ("far", "远")),
    (("early", "早"), ("late", "晚")),
    (("left", "左"), ("right", "右")),
    (("up", "上"), ("down", "下")),
    (("inside", "里面"), ("outside", "外面")),
    (("win", "赢"), ("lose", "输")),
    (("buy", "买"), ("sell", "卖")),
    (("true", "真"), ("false", "假")),
    (("loud", "吵闹"), ("quiet", "安静")),
    (("sweet", "甜"), ("bitter", "苦")),
)

NUMBERS: tuple[Words, ...] = (
    ("zero", "零"),
    ("one", "一"),
    ("two", "二"),
    ("three", "三"),
    ("four", "四"),
    ("five", "五"),
    ("six", "六"),
    ("seven", "七"),
    ("eight", "八"),
    ("nine", "九"),
    ("ten", "十"),
    ("eleven", "十一"),
    ("twelve", "十二"),
    ("thirteen", "十三"),
    ("fourteen", "十四"),
    ("fifteen", "十五"),
    ("sixteen", "十六"),
    ("seventeen", "十七"),
    ("eighteen", "十八"),
    ("nineteen", "十九"),
    ("twenty", "二十"),
)

Forms = dict[str, tuple[str, ...]]
"""By language: sentences with the names of slots in braces."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How facts of one kind are stated, asked and answered.

    `asks` are split between training and the held-out questions; `open_asks`, too close to a statement, are always
    trained on; `follow_ups` only make sense after a question of the same kind. `key` is the slot that a right answer
    contains, `echoes` those that it may repeat.
    """

    states: Forms
    asks: Forms
    open_asks: Forms
    follow_ups: Forms
    answer: dict[str, str]
    key: str
    echoes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """One truth of the world: its kind, a name that no language changes, and its words by language and slot."""

    kind: str
    name: str
    slots: dict[str, dict[str, str]]

    def say(self, form: str, language: str) -> str:
        """The form with this fact's words in it; an English sentence starts with a capital."""
        text = form.format(**self.slots[language])
        return text[0].upper() + text[1:]

    def answer(self, language: str) -> str:
        return self.say(KINDS[self.kind].answer[language], language)

    def key(self, language: str) -> str:
        return self.slots[language][KINDS[self.kind].key]


CAPITAL_STATES: Forms = {
    "en": (
        "The capital of {country} is {capital}.",
        "{capital} is the capital of {country}.",
        "The capital city of {country} is called {capital}.",
        "{country} has a capital: {capital}.",
        "In {country}, the capital is {capital}.",
    ),
    "zh": (
        "{country}的首都是{capital}。",
        "{capital}是{country}的首都。",
        "{country}的首都叫{capital}。",
        "{country}的首都在{capital}。",
    ),
}

KINDS: dict[str, Kind] = {
    "capital": Kind(
        states=CAPITAL_STATES,
        asks={
            "en": (
                "What is the capital of {country}?",
                "Which city is the capital of {country}?",
                "Tell me the capital city of {country}.",
                "What city is {country}'s capital?",
                "Name the capital of {country}.",
                "What's the capital city of {country}?",
            ),
            "zh": (
                "{country}的首都是哪里？",
                "{country}的首都是什么？",
                "哪个城市是{country}的首都？",
                "告诉我{country}的首都。",
                "{country}的首都叫什么名字？",
                "{country}的首都在哪儿？",
            ),
        },
        open_asks={"en": ("Capital of {country}?",), "zh": ("{country}首都？",)},
        follow_ups={"en": ("And {country}?", "What about {country}?"), "zh": ("那{country}呢？",)},
        answer={"en": "The capital of {country} is {capital}.", "zh": "{country}的首都是{capital}。"},
        key="capital",
        echoes=("country",),
    ),
    "country": Kind(
        states=CAPITAL_STATES,
        asks={
            "en": (
                "{capital} is the capital of which country?",
                "Which country has the capital {capital}?",
                "What country is {capital} the capital of?",
                "Of which country is {capital} the capital?",
            ),
            "zh": (
                "{capital}是哪个国家的首都？",
                "哪个国家的首都是{capital}？",
                "首都是{capital}的国家是哪个？",
                "{capital}是什么国家的首都？",
            ),
        },
        open_asks={"en": (), "zh": ()},
        follow_ups={"en": ("And {capital}?",), "zh": ("那{capital}呢？",)},
        answer={"en": "{capital} is the capital of {country}.", "zh": "{capital}是{country}的首都。"},
        key="country",
        echoes=("capital",),
    ),
    "colour": Kind(
        states={
            "en": (
                "The colour of {thing} is {colour}.",
                "{thing} is {colour}.",
                "{thing} has the color {colour}.",
                "Everyone knows that {thing} is {colour}.",
            ),
            "zh": (
                "{thing}是{colour}的。",
                "{thing}的颜色是{colour}。",
                "大家都知道{thing}是{colour}的。",
                "{thing}有着{colour}的颜色。",
            ),
        },
        asks={
            "en": (
                "What colour is {thing}?",
                "What color is {thing}?",
                "Which colour does {thing} have?",
                "Tell me the colour of {thing}.",
                "What is the color of {thing}?",
                "Do you know what colour {thing} is?",
            ),
            "zh": (
                "{thing}是什么颜色？",
                "{thing}的颜色是什么？",
                "说说{thing}的颜色。",
                "告诉我{thing}的颜色。",
                "{thing}是哪种颜色？",
                "你知道{thing}有什么颜色吗？",
            ),
        },
        open_asks={"en": ("Colour of {thing}?", "Color of {thing}?"), "zh": ("{thing}颜色？",)},
        follow_ups={"en": ("And {thing}?", "What about {thing}?"), "zh": ("那{thing}呢？",)},
        answer={"en": "{thing} is {colour}.", "zh": "{thing}是{colour}的。"},
        key="colour",
        echoes=(),
    ),
    "opposite": Kind(
        states={
            "en": (
                "The opposite of {word} is {other}.",
                "{word} is the opposite of {other}.",
                "{word} and {other} are opposites.",
                "What is not {word} may be {other}.",
                "“{word}” means the opposite of “{other}”.",
            ),
            "zh": (
                "{word}的反义词是{other}。",
                "“{word}”和“{other}”意思相反。",
                "和{word}相反的是{other}。",
                "不是{word}，就是{other}。",
            ),
        },
        asks={
            "en": (
                "What is the opposite of {word}?",
                "Which word is the opposite of {word}?",
                "Tell me the opposite of {word}.",
                "What word means the opposite of {word}?",
                "Give me the opposite of the word {word}.",
                "What's the opposite of “{word}”?",
            ),
            "zh": (
                "{word}的反义词是什么？",
                "“{word}”的反义词是哪个？",
                "告诉我{word}的反义词。",
                "和{word}相反的词是什么？",
                "哪个词和“{word}”意思相反？",
                "请说出“{word}”的反义词。",
            ),
        },
        open_asks={"en": ("Opposite of {word}?",), "zh": ("“{word}”的反义词？",)},
        follow_ups={"en": ("And {word}?", "What about {word}?"), "zh": ("那{word}呢？",)},
        answer={"en": "The opposite of {word} is {other}.", "zh": "{word}的反义词是{other}。"},
        key="other",
        echoes=("word",),
    ),
    "sum": Kind(
        states={
            "en": ("{a} + {b} = {c}", "{a} plus {b} is {c}.", "{a} and {b} make {c}.", "{A} plus {B} is {c}."),
            "zh": ("{a} + {b} = {c}", "{a}加{b}等于{c}。", "{a}加上{b}是{c}。", "{A}加{B}等于{c}。"),
        },
        asks={
            "en": (
                "What is {a} + {b}?",
                "What is {a} plus {b}?",
                "How much is {a} and {b} together?",
                "Please add {a} and {b}.",
                "Can you work out {a} + {b}?",
                "How much is {A} plus {B}?",
                "I have {a} apples and get {b} more. How many apples do I have?",
            ),
            "zh": (
                "{a}加{b}等于几？",
                "{a} + {b} 等于多少？",
                "请算一下{a}加{b}。",
                "{a}加上{b}是多少？",
                "{a}和{b}一共是多少？",
                "{A}加{B}等于几？",
                "我有{a}个苹果，又得到{b}个，现在有几个苹果？",
            ),
        },
        open_asks={"en": ("{a} + {b} = ?", "{a}+{b}=?", "{a} + {b}"), "zh": ("{a}+{b}=？",)},
        follow_ups={"en": ("And {a} + {b}?",), "zh": ("那{a}加{b}呢？",)},
        answer={"en": "The answer is {c}.", "zh": "答案是{c}。"},
        key="c",
        echoes=(),
    ),
    "difference": Kind(
        states={
            "en": (
                "{a} - {b} = {c}",
                "{a} minus {b} is {c}.",
                "{b} taken from {a} leaves {c}.",
                "{A} minus {B} is {c}.",
            ),
            "zh": ("{a} - {b} = {c}", "{a}减{b}等于{c}。", "{a}减去{b}是{c}。", "{A}减{B}等于{c}。"),
        },
        asks={
            "en": (
                "What is {a} - {b}?",
                "What is {a} minus {b}?",
                "How much is left when you take {b} from {a}?",
                "Please subtract {b} from {a}.",
                "Can you work out {a} - {b}?",
                "How much is {A} minus {B}?",
                "I have {a} apples and eat {b} of them. How many apples are left?",
            ),
            "zh": (
                "{a}减{b}等于几？",
                "{a} - {b} 等于多少？",
                "请算一下{a}减{b}。",
                "{a}减去{b}是多少？",
                "从{a}里拿走{b}还剩多少？",
                "{A}减{B}等于几？",
                "我有{a}个苹果，吃了{b}个，还剩几个苹果？",
            ),
        },
        open_asks={"en": ("{a} - {b} = ?", "{a}-{b}=?", "{a} - {b}"), "zh": ("{a}-{b}=？",)},
        follow_ups={"en": ("And {a} - {b}?",), "zh": ("那{a}减{b}呢？",)},
        answer={"en": "The answer is {c}.", "zh": "答案是{c}。"},
        key="c",
        echoes=(),
    ),
}


def facts() -> list[Fact]:
    """Every fact of the world, always in the same order."""
    return [*_capitals(), *_colours(), *_opposites(), *_sums()]


def _fact(kind: str, **slots: Words) -> Fact:
    name = " ".join(words[0] for words in slots.values())
    by_language = {language: {slot: words[n] for slot, words in slots.items()} for n, language in enumerate(LANGUAGES)}
    return Fact(kind, name, by_language)


def _capitals() -> list[Fact]:
    return [
        _fact(kind, country=country, capital=capital)
        for kind in ("capital", "country")
        for country, capital in COUNTRIES
    ]


def _colours() -> list[Fact]:
    return [_fact("colour", thing=thing, colour=COLOURS[colour]) for thing, colour in THINGS]


def _opposites() -> list[Fact]:
    both_ways = chain.from_iterable(((one, two), (two, one)) for one, two in OPPOSITES)
    return [_fact("opposite", word=word, other=other) for word, other in both_ways]


def _sums() -> list[Fact]:
    sums = [("sum", a, b, a + b) for a in range(LIMIT + 1) for b in range(LIMIT + 1 - a)]
    differences = [("difference", a, b, a - b) for a in range(LIMIT + 1) for b in range(a + 1)]
    return [_sum(kind, a, b, c) for kind, a, b, c in sums + differences]


def _sum(kind: str, a: int, b: int, c: int) -> Fact:
    digits = {slot: (str(n), str(n)) for slot, n in (("a", a), ("b", b), ("c", c))}
    return _fact(kind, **digits, A=NUMBERS[a], B=NUMBERS[b])
