"""Chats of families whose folders hold no template, in parts: text that is only text, and tokens by their names.

Whatever a user writes, no spelling in it is taken for a token of the chat. A family is a line in `FAMILY_CHATS`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

import tokenizers

from trefoil_models.chat_template import ChatTemplateError, message_text
from trefoil_models.tokenizer_files import read_object

Messages = Sequence[Mapping[str, object]]
NEXT = "\n\n"
ANSWER = f"{NEXT}答："


class Kind(Enum):
    """How a part of a chat becomes ids."""

    TEXT = "text"
    TOKEN = "token"  # noqa: S105 - a kind of part
    MARKED = "marked"
    """Text that names its special tokens itself, as templates write it."""


@dataclass(frozen=True, slots=True)
class Part:
    """A run of a chat; of a token its name."""

    text: str
    kind: Kind = Kind.TEXT


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation as one model reads it."""

    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The whole as one text, tokens by their names."""
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True, slots=True)
class FamilyChat:
    """How a family writes chats: messages, and whether the assistant is to speak next, to parts.

    `ends` are the tokens that end its turns besides the folder's eos.
    """

    write: Callable[[Messages, bool], Iterator[Part]]
    ends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Folder:
    """What decides how its chats are written: config.json, generation_config.json, the tokens it knows."""

    config: Mapping[str, object]
    generation: Mapping[str, object]
    backend: tokenizers.Tokenizer

    def knows(self, *tokens: str) -> bool:
        return all(self.backend.token_to_id(token) is not None for token in tokens)


def family_chat(path: Path, backend: tokenizers.Tokenizer) -> FamilyChat | None:
    """The chat of the folder's family, where there is one of our own."""
    config, generation = (read_object(path, name) for name in ("config.json", "generation_config.json"))
    choose = FAMILY_CHATS.get(str(config.get("model_type")))
    return choose(Folder(config, generation, backend)) if choose else None


def token(name: str) -> Part:
    """The token of this name."""
    return Part(name, Kind.TOKEN)


def turns(messages: Messages, *roles: str) -> Iterator[tuple[str, str]]:
    """Each message's role, which must be among these, and its text. Raises ChatTemplateError."""
    for message in messages:
        role = str(message.get("role"))
        if role not in roles:
            raise ChatTemplateError(f"this family's chats know the roles {', '.join(roles)}, not {role}")
        yield role, message_text(message)


def taking_turns(messages: Messages, asks: bool) -> list[str]:
    """What user and assistant say by turns, the user first and, where an answer is asked for, last.

    Raises ChatTemplateError.
    """
    said = list(turns(messages, "user", "assistant"))
    if any(role != ("user", "assistant")[number % 2] for number, (role, _) in enumerate(said)):
        raise ChatTemplateError("this family's chats begin with the user, and user and assistant take turns")
    if not said or (asks and len(said) % 2 == 0):
        raise ChatTemplateError("this family answers a message of the user, which must be the last")
    return [text for _, text in said]


def _chatglm(folder: Folder) -> FamilyChat | None:
    """Roles are tokens in ChatGLM 3 and GLM-4; ChatGLM 2 writes rounds, and so does ChatGLM-6B, in its way."""
    if "position_encoding_2d" in folder.config or "inner_hidden_size" in folder.config:
        return FamilyChat(_chatglm_6b)
    if folder.knows("<|user|>"):
        start = "<sop>" if folder.knows("<sop>") else "sop"
        return FamilyChat(partial(_chatglm3, start), ends=("<|user|>", "<|observation|>"))
    return FamilyChat(_chatglm2)


def _chatglm_6b(messages: Messages, asks: bool) -> Iterator[Part]:
    """A lone question as it is, else rounds from 0; the answer to the last stands behind the prompt's tokens."""
    said = taking_turns(messages, asks)
    answer = [said.pop()] if len(said) % 2 == 0 else []
    rounds = (f"{text}\n" if n % 2 else f"[Round {n // 2}]\n问：{text}\n答：" for n, text in enumerate(said))
    yield Part("".join(rounds) if len(said) > 1 else said[0])
    if asks or answer:
        yield from (token("[gMASK]"), token("<sop>"), *map(Part, answer))


def _chatglm2(messages: Messages, asks: bool) -> Iterator[Part]:
    """Rounds of a question and its answer, counted from 1, as one text."""
    rounds = (
        f"{ANSWER}{text}" if n % 2 else f"{NEXT if n else ''}[Round {n // 2 + 1}]{NEXT}问：{text}"
        for n, text in enumerate(taking_turns(messages, asks))
    )
    yield from (token("[gMASK]"), token("sop"), Part("".join(rounds) + (ANSWER if asks else "")))


def _chatglm3(start: str, messages: Messages, asks: bool) -> Iterator[Part]:
    """A token for the role, a line for metadata, the text; each encoded by itself."""
    yield from (token("[gMASK]"), token(start))
    for role, text in turns(messages, "system", "user", "assistant", "observation"):
        yield from (token(f"<|{role}|>"), Part("\n"), Part(text))
    if asks:
        yield token("<|assistant|>")


FAMILY_CHATS: dict[str, Callable[[Folder], FamilyChat | None]] = {"chatglm": _chatglm}
