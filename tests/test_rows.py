"""Every format is told by its keys; every broken line is named with its number and its cause."""

import io
import json
from typing import Any

import pytest

from trefoil.rows import Chat, Continuation, Labelled, Preference, Question, Row, RowError, Tagged, Text, parse_lines
from trefoil.rows import Prompt as PromptRow

USER = {"role": "user", "content": "1+1?"}
TWO = {"role": "assistant", "content": "2"}
THREE = {"role": "assistant", "content": "3"}
SQUAD = {"question": "who?", "context": "it was Ann", "answers": {"text": ["Ann"], "answer_start": [7]}}
PAIR = Preference(Chat((USER, TWO)), Chat((USER, THREE)), num_shared=1)


def rows(*lines: Any) -> list[Row]:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    return [line.row for line in parse_lines(io.BytesIO(text.encode()), "a.jsonl")]


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ({"messages": [USER, TWO]}, Chat((USER, TWO))),
        ({"messages": [{"role": "developer", "content": "x"}]}, Chat(({"role": "system", "content": "x"},))),
        ({"conversations": [USER, TWO]}, Chat((USER, TWO))),
        ({"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]}, Chat((USER, TWO))),
        ({"instruction": "1+1?", "output": "2"}, Chat((USER, TWO))),
        ({"instruction": "add", "input": "1 1", "output": "2"}, Chat(({**USER, "content": "add\n1 1"}, TWO))),
        ({"instruction": "1+1?", "input": "", "output": "2"}, Chat((USER, TWO))),
        ({"prompt": "1+1=", "completion": "2"}, Continuation("1+1=", "2")),
        ({"prompt": [USER], "completion": [TWO]}, Chat((USER, TWO))),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, Preference(Continuation("a", "b"), Continuation("a", "c"))),
        ({"prompt": [USER], "chosen": [TWO], "rejected": [THREE]}, PAIR),
        ({"prompt": [USER], "chosen": "2", "rejected": "3"}, PAIR),
        ({"chosen": [USER, TWO], "rejected": [USER, THREE]}, PAIR),
        ({"input": {"messages": [USER]}, "preferred_output": [TWO], "non_preferred_output": [THREE]}, PAIR),
        ({"text": "天气"}, Text("天气")),
        ({"text": "good", "label": "positive"}, Labelled("good", None, "positive")),
        ({"text": "a", "text_pair": "b", "label": 1}, Labelled("a", "b", 1)),
        ({"tokens": ["Ann", "ran"], "tags": ["PER", "O"]}, Tagged(("Ann", "ran"), ("PER", "O"))),
        (SQUAD, Question("who?", "it was Ann", ("Ann",), (7,))),
        ({"prompt": "1+1=", "answer": 2}, PromptRow("1+1=", {"answer": 2})),
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_a_line_is_known_by_its_keys(line: dict[str, Any], row: Row) -> None:
    assert rows(line) == [row]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("{", "no valid JSON"),
        ("[1]", "must be a JSON object, not a list"),
        ({}, r"keys \(none\)"),
        ({"speech": 1}, "'speech'.*no known format"),
        ({"messages": "hello"}, "'messages' must be a list of messages, not text"),
        ({"messages": []}, "'messages' is an empty list"),
        ({"messages": ["hello"]}, r"messages\[0\] must be an object"),
        ({"messages": [{"content": "a"}]}, r"messages\[0\] has no 'role'"),
        ({"messages": [USER, {"role": "wizard", "content": "a"}]}, r"messages\[1\].role 'wizard'"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] has no 'content'"),
        ({"messages": [{"role": "user", "content": 5}]}, r"messages\[0\] 'content' must be text, not a number"),
        ({"messages": [{**TWO, "weight": 2}]}, r"messages\[0\].weight 2"),
        ({"conversations": [{"from": "human"}]}, r"conversations\[0\] has no 'value'"),
        ({"conversations": [{"from": "wizard", "value": "a"}]}, r"conversations\[0\].role 'wizard'"),
        ({"instruction": 5, "output": "a"}, "'instruction' must be text, not a number"),
        ({"instruction": "a", "output": ""}, "'output' is empty"),
        ({"instruction": "a", "input": 5, "output": "b"}, "'input' must be text"),
        ({"prompt": "a", "completion": None}, "'prompt' must be a list of messages"),
        ({"prompt": "a", "completion": ""}, "'completion' is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "the same"),
        ({"prompt": "a", "chosen": "b", "rejected": [TWO]}, "'rejected' must be text"),
        ({"input": {}, "preferred_output": [TWO], "non_preferred_output": [THREE]}, "'messages'"),
        ({"text": ""}, "'text' is empty"),
        ({"text": "a", "label": None}, "'label' must be"),
        ({"tokens": ["a"], "tags": []}, "'tags' must be a list that is not empty"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "one tag a token"),
        ({**SQUAD, "answers": {"text": ["Ann"], "answer_start": [6]}}, "does not stand at 6"),
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_a_broken_line_is_named_with_its_cause(line: Any, cause: str) -> None:
    with pytest.raises(RowError, match=f"^a.jsonl, line 3: .*{cause}"):
        rows({"text": "good"}, "", line)


def test_bytes_that_are_no_text_are_named() -> None:
    with pytest.raises(RowError, match=r"^a\.jsonl, line 1: no valid JSON"):
        list(parse_lines(io.BytesIO(b'{"text": "\xff"}'), "a.jsonl"))


@pytest.mark.parametrize("content", [b"", b"\n \n"], ids=["empty", "blank"])
def test_a_file_without_rows_is_refused(content: bytes) -> None:
    with pytest.raises(RowError, match=r"a\.jsonl is empty"):
        list(parse_lines(io.BytesIO(content), "a.jsonl"))


def test_a_byte_order_mark_and_windows_lines_are_read() -> None:
    lines = list(parse_lines(io.BytesIO(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}'), "a.jsonl"))
    assert [(line.number, line.row) for line in lines] == [(1, Text("a")), (2, Text("b"))]
