"""What an answer's text must look like: JSON (of a schema), a regular expression, one of some choices, or rules.

Each becomes a grammar in llguidance's own text, which the engine follows. A schema is taken by its very letter: a
keyword that the library does not know is refused, never passed over.
"""

import json
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from llguidance import LLMatcher, LLParserLimits, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark
from pydantic import BaseModel, ConfigDict, Field

from trefoil.api.text import StopText, Text
from trefoil.deep_stack import on_deep_stack
from trefoil.errors import InvalidRequest, is_panic

MAX_GRAMMAR_CHARS = 256 * 1024
MAX_CHOICES = 10_000
MOST_GBNF_RULES = 1000
"""They are read in Python, in a second for as many and in four for twice as many."""
MOST_FUEL = 40_000
"""What the library may spend on expressions. It compiles 8000 optional letters for as much, in 1.2 s."""
MOST_SYMBOLS_OF_SCHEMAS = 8_000
"""In the rules that the library makes: 1000 optional properties, in 0.2 s. Its time grows with the square."""
MOST_SYMBOLS_OF_RULES = 2_000
"""Parts that may all be missing cost the cube: 0.6 s for a token at 1700 symbols, 3 at 2500, minutes at 5000, and the
engine computes nothing else meanwhile.
"""
MOST_WORDS_OF_RULES = 3_000
"""Counted before the library counts symbols: it says 2 minutes later that a chain of 9000 rules has too many."""
WORD = re.compile(r'"(?:[^"\\]|\\.)*"|/(?:[^/\\]|\\.)*/|\w+|[?*+|]', re.DOTALL)
META = re.compile(r"[\\.+*?()|\[\]{}^$/\x00-\x1f\x7f]")
WHITE_SPACE = r"[ \n]?"
"""Between two tokens of JSON: a model in doubt cannot fill its answer with it."""
OPTIONS = '%llguidance {"no_forcing": true}'
"""Where only one text can follow, the model still chooses how to cut it into tokens."""
ECHO = re.compile(r"^ *\d+ \| .*$|^ +\^+$", re.MULTILINE)
PLACE_OF_OURS = re.compile(r"^at 1\(\d+\): (failed to compile JSON schema: |invalid regex )?")
ANY_OBJECT: dict[str, Any] = {"type": "object"}

Choices = Annotated[list[StopText], Field(min_length=1, max_length=MAX_CHOICES)]
Schema = dict[str, Any]


class NamedSchema(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    name: Text
    content: Schema = Field(default_factory=dict, alias="schema")
    description: Text | None = None
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """OpenAI's words; Hugging Face's client sends a schema as the `value` of a `json_object`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    value: Schema | None = None


class StructuredOutputs(BaseModel):
    """vLLM's way to say it; a schema may be text."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    schema_: Schema | Text | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None


class Wanted:
    """One demand on the text, and the field it came in; its grammar is still to be made, which can take a while."""

    def __init__(
        self, param: str, rules: Callable[[], str], *, symbols: int = MOST_SYMBOLS_OF_RULES, fuel: int = MOST_FUEL
    ) -> None:
        """`rules`: in Lark's syntax as llguidance reads it, within its measures of what they cost."""
        self.param, self._rules = param, rules
        self._limits = LLParserLimits(max_grammar_size=symbols, initial_lexer_fuel=fuel, verbose_errors=False)

    def grammar(self) -> str:
        """In llguidance's text. Raises InvalidRequest."""
        return on_deep_stack(self._made)

    def _made(self) -> str:
        try:
            rules = self._rules()
            if len(rules) > MAX_GRAMMAR_CHARS:
                raise InvalidRequest(f"{self.param}: longer than {MAX_GRAMMAR_CHARS} characters", param=self.param)
            made = LLMatcher.grammar_from_lark(f"{rules}\n{OPTIONS}")
            why = LLMatcher.validate_grammar(made, limits=self._limits)
        except InvalidRequest:
            raise
        except Exception as error:  # a parser of the library raises what it likes
            why = str(error)
        except BaseException as error:
            if not is_panic(error):
                raise
            why = "the library that reads it fails"
        if why:
            raise InvalidRequest(f"{self.param}: cannot be followed: {_told(why)}", param=self.param)
        return made


def _told(why: str) -> str:
    """Without the echo of the rules, and without their place where the client wrote none."""
    told = " ".join(ECHO.sub("", why).split())
    return PLACE_OF_OURS.sub("", told)


def of_schema(schema: Schema, param: str) -> Wanted:
    """JSON that the schema (https://json-schema.org) allows."""
    asked = {**schema, "x-guidance": {"whitespace_pattern": WHITE_SPACE}}
    return Wanted(param, lambda: f"start: %json {json.dumps(asked)}", symbols=MOST_SYMBOLS_OF_SCHEMAS)


def of_regex(regex: str, param: str) -> Wanted:
    """Text that the whole expression (Rust's syntax, no look-around) matches."""
    return Wanted(param, lambda: f"start: /{regex_to_lark(regex, '')}/")


def of_choice(choices: list[str], param: str) -> Wanted:
    """One of these texts: as one expression, whose cost grows with their letters alone."""
    return Wanted(param, lambda: f"start: /{'|'.join(map(_literal, choices))}/", fuel=MAX_GRAMMAR_CHARS)


def _literal(text: str) -> str:
    """An expression for this very text."""
    return META.sub(lambda found: f"\\x{{{ord(found[0]):x}}}", text)


def of_rules(rules: str, param: str) -> Wanted:
    """Rules in GBNF (`root ::= ...`) or in Lark (`start: ...`). Raises InvalidRequest for too many."""
    if rules.count("::=") > MOST_GBNF_RULES:
        raise InvalidRequest(f"{param}: more than {MOST_GBNF_RULES} rules; Lark's syntax may have more", param=param)
    if sum(1 for _ in WORD.finditer(rules)) > MOST_WORDS_OF_RULES:
        raise InvalidRequest(f"{param}: more than {MOST_WORDS_OF_RULES} names, texts and marks", param=param)
    return Wanted(param, lambda: any_to_lark(rules))


def of_format(asked: ResponseFormat | None) -> list[Wanted]:
    """OpenAI's way to say it. Raises InvalidRequest."""
    if asked is None:
        return []
    for name, kind in (("json_schema", "json_schema"), ("value", "json_object")):
        if getattr(asked, name) is not None and asked.type != kind:
            param = f"response_format.{name}"
            raise InvalidRequest(f"{param} goes with the type {kind}, not {asked.type}", param=param)
    if asked.type == "text":
        return []
    if asked.value is not None:
        return [of_schema(asked.value, "response_format.value")]
    if asked.type == "json_object":
        return [of_schema(ANY_OBJECT, "response_format")]
    if asked.json_schema is None:
        raise InvalidRequest("response_format.json_schema: field required", param="response_format.json_schema")
    return [of_schema(asked.json_schema.content, "response_format.json_schema.schema")]


def of_outputs(asked: StructuredOutputs | None) -> list[Wanted]:
    """Each demand there is; a schema in text is read here. Raises InvalidRequest."""
    if asked is None:
        return []
    wanted = [of_schema(ANY_OBJECT, "structured_outputs.json_object")] if asked.json_object else []
    if asked.schema_ is not None:
        wanted.append(of_schema(_read(asked.schema_), "structured_outputs.json"))
    if asked.regex is not None:
        wanted.append(of_regex(asked.regex, "structured_outputs.regex"))
    if asked.choice is not None:
        wanted.append(of_choice(asked.choice, "structured_outputs.choice"))
    if asked.grammar is not None:
        wanted.append(of_rules(asked.grammar, "structured_outputs.grammar"))
    return wanted


def _read(schema: Schema | str) -> Schema:
    if not isinstance(schema, str):
        return schema
    try:
        read = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"structured_outputs.json: no valid JSON: {error}", param="structured_outputs.json"
        ) from error
    if not isinstance(read, dict):
        raise InvalidRequest(
            "structured_outputs.json: must be a schema, which is an object", param="structured_outputs.json"
        )
    return read
