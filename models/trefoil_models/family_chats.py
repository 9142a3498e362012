"""Chats of families whose folders hold no template, in parts: text that is only text, and tokens by their names.

Whatever a user writes, no spelling in it is taken for a token of the chat. A family is a line in `FAMILY_CHATS`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import zip_longest
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


def by_turns(said: Sequence[tuple[str, str]], asks: bool) -> list[str]:
    """What is said by user and assistant in turn, the user first and, where an answer is asked for, last.

    Raises ChatTemplateError.
    """
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
    said = by_turns(list(turns(messages, "user", "assistant")), asks)
    answer = [said.pop()] if len(said) % 2 == 0 else []
    rounds = (f"{text}\n" if n % 2 else f"[Round {n // 2}]\n问：{text}\n答：" for n, text in enumerate(said))
    yield Part("".join(rounds) if len(said) > 1 else said[0])
    if asks or answer:
        yield from (token("[gMASK]"), token("<sop>"), *map(Part, answer))


def _chatglm2(messages: Messages, asks: bool) -> Iterator[Part]:
    """Rounds of a question and its answer, counted from 1, as one text."""
    rounds = (
        f"{ANSWER}{text}" if n % 2 else f"{NEXT if n else ''}[Round {n // 2 + 1}]{NEXT}问：{text}"
        for n, text in enumerate(by_turns(list(turns(messages, "user", "assistant")), asks))
    )
    yield from (token("[gMASK]"), token("sop"), Part("".join(rounds) + (ANSWER if asks else "")))


def _chatglm3(start: str, messages: Messages, asks: bool) -> Iterator[Part]:
    """A token for the role, a line for metadata, the text; each encoded by itself."""
    yield from (token("[gMASK]"), token(start))
    for role, text in turns(messages, "system", "user", "assistant", "observation"):
        yield from (token(f"<|{role}|>"), Part("\n"), Part(text))
    if asks:
        yield token("<|assistant|>")


def _baichuan(folder: Folder) -> FamilyChat | None:
    """The folder numbers the tokens of its speakers; one that does not is no chat model."""
    ids = (folder.generation.get(f"{speaker}_token_id") for speaker in ("user", "assistant"))
    names = [folder.backend.id_to_token(number) for number in ids if isinstance(number, int) and number >= 0]
    user, assistant = names if len(names) == 2 else (None, None)
    return FamilyChat(partial(_spoken, {"user": user, "assistant": assistant})) if user and assistant else None


def _spoken(speakers: Mapping[str, str], messages: Messages, asks: bool) -> Iterator[Part]:
    """What the system says first as bare text, then a token for who speaks and the words."""
    for number, (role, text) in enumerate(turns(messages, "system", *speakers)):
        if role == "system" and number:
            raise ChatTemplateError("this family's chats have a system message at their beginning alone")
        if role != "system":
            yield token(speakers[role])
        yield Part(text)
    if asks:
        yield token(speakers["assistant"])


def _qwen(folder: Folder) -> FamilyChat | None:
    """ChatML, save where the folder says that it was not taught to chat."""
    if folder.generation.get("chat_format") == "raw":
        return None
    return FamilyChat(partial(_chatml, "You are a helpful assistant."), ends=("<|im_end|>", "<|im_start|>"))


def _chatml(system: str, messages: Messages, asks: bool) -> Iterator[Part]:
    """Who speaks, a line break and the words between two tokens, each encoded by itself; a system speaks first."""
    said = list(turns(messages, "system", "user", "assistant"))
    if not said or said[0][0] != "system":
        said.insert(0, ("system", system))
    for number, (role, text) in enumerate(said):
        between = (Part("\n"),) if number else ()
        yield from (*between, token("<|im_start|>"), Part(role), Part("\n"), Part(text), token("<|im_end|>"))
    if asks:
        yield from (Part("\n"), token("<|im_start|>"), Part("assistant"), Part("\n"))


def _internlm(folder: Folder) -> FamilyChat | None:
    """InternLM 1's marks of speakers are text; that of an answer's end is a piece of its vocabulary."""
    return FamilyChat(_marked, ends=("<eoa>",))


def _marked(messages: Messages, asks: bool) -> Iterator[Part]:
    """One text behind the token that begins every text."""
    marks = {"system": ("<|System|>:", "\n"), "user": ("<|User|>:", "\n"), "assistant": ("<|Bot|>:", "<eoa>\n")}
    said = [f"{marks[role][0]}{text}{marks[role][1]}" for role, text in turns(messages, *marks)]
    yield from (token("<s>"), Part("".join(said) + ("<|Bot|>:" if asks else "")))


def _internlm2(folder: Folder) -> FamilyChat | None:
    """ChatML behind the token that begins every text, where the vocabulary has its tokens."""
    marks = "<|im_start|>", "<|im_end|>"
    return FamilyChat(partial(_blocks, *marks), ends=marks[1:]) if folder.knows("<s>", *marks) else None


def _blocks(start: str, end: str, messages: Messages, asks: bool) -> Iterator[Part]:
    """A line for who speaks and the words, as one text between two tokens."""
    yield token("<s>")
    for role, text in turns(messages, "system", "user", "assistant"):
        yield from (token(start), Part(f"{role}\n{text}"), token(end), Part("\n"))
    if asks:
        yield from (token(start), Part("assistant\n"))


def _llama(folder: Folder) -> FamilyChat | None:
    """LLaMA 2's and DeepSeek-LLM's chats, by what tells the models apart; others of this name store a template."""
    positions, vocab_size = (folder.config.get(name) for name in ("max_position_embeddings", "vocab_size"))
    if (positions, vocab_size) == (4096, 32000) and folder.knows("<s>", "</s>"):
        return FamilyChat(_llama2)
    return _deepseek(folder) if vocab_size == 102400 else None


def _llama2(messages: Messages, asks: bool) -> Iterator[Part]:
    """A question and its answer are a text with a beginning and an end; the first question holds the system's words."""
    said, system = list(turns(messages, "system", "user", "assistant")), ""
    if said and said[0][0] == "system":
        system = f"<<SYS>>\n{said.pop(0)[1]}\n<</SYS>>\n\n"
    texts = by_turns(said, asks)
    for question, answer in zip_longest(texts[::2], texts[1::2]):
        asked, system = f"[INST] {(system + question).strip()} [/INST]", ""
        yield from (token("<s>"), Part(asked if answer is None else f"{asked} {answer.strip()} "))
        if answer is not None:
            yield token("</s>")


def _deepseek(folder: Folder) -> FamilyChat | None:
    """DeepSeek-LLM's and DeepSeek-MoE's, whose byte-level vocabulary names its bounds like this."""
    bounds = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    return FamilyChat(partial(_named, *bounds)) if folder.knows(*bounds) else None


def _named(bos: str, eos: str, messages: Messages, asks: bool) -> Iterator[Part]:
    """Who speaks before the words, of the system the words alone."""
    yield token(bos)
    run = ""
    for role, text in turns(messages, "system", "user", "assistant"):
        if role == "assistant":
            yield from (Part(f"{run}Assistant: {text}"), token(eos))
            run = ""
        else:
            run += f"User: {text}\n\n" if role == "user" else f"{text}\n\n"
    if run or asks:
        yield Part(run + "Assistant:" if asks else run)


FAMILY_CHATS: dict[str, Callable[[Folder], FamilyChat | None]] = {
    "baichuan": _baichuan,
    "chatglm": _chatglm,
    "deepseek": _deepseek,
    "internlm": _internlm,
    "internlm2": _internlm2,
    "llama": _llama,
    "qwen": _qwen,
}
