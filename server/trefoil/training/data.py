"""Rows to examples: plain text in windows, chats with the loss on what the assistant says, pairs of answers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from trefoil.rows import Chat, Continuation, Message, Preference, Prompt, Row, RowError
from trefoil.training.examples import Asked, Example, Pair
from trefoil_models.family_chats import Chat as Written
from trefoil_models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Reader:
    """How one model reads rows. The first of the `end_ids` ends a text that nothing else has ended.

    `start_id` begins what an encoder-decoder's decoder says; None: the model has no encoder.
    """

    tokenizer: Tokenizer
    end_ids: tuple[int, ...]
    longest: int
    truncates: bool = False
    start_id: int | None = None

    def within(self, ids: Sequence[int], is_label: Sequence[bool]) -> Example:
        """An example of these ids, no longer than may be. Raises RowError."""
        if len(ids) > self.longest and not self.truncates:
            raise RowError(f"{len(ids)} tokens, the limit is {self.longest}: shorten it, split it or set truncation")
        ids, is_label = ids[: self.longest], [False, *is_label[1 : self.longest]]
        if not any(is_label):
            raise RowError("nothing to learn: no token of an answer is left")
        return Example(tuple(ids), tuple(is_label))

    def pair(self, source: str, target: str) -> Example:
        """A text for the encoder and what the decoder is to make of it. Raises RowError."""
        assert self.start_id is not None
        ids = self.tokenizer.encode_ids(source)
        if len(ids) > self.longest and not self.truncates:
            raise RowError(f"a source of {len(ids)} tokens, the limit is {self.longest}: shorten it or set truncation")
        said = [self.start_id, *self.tokenizer.encode_ids(target, add_special_tokens=False), self.end_ids[0]]
        learned = self.within(said, [False, *[True] * (len(said) - 1)])
        return replace(learned, source=tuple(ids[: self.longest]) or (self.end_ids[0],))


def text_examples(texts: Iterable[str], tokenizer: Tokenizer, *, window: int, eos_id: int) -> Iterator[Example]:
    """All texts end to end, eos after each, cut into windows of `window` rows; every token is predicted once."""
    documents = ([*tokenizer.encode_ids(text, add_special_tokens=False), eos_id] for text in texts)
    ids = list(chain.from_iterable(documents))
    for start in range(0, len(ids) - 1, window):
        piece = tuple(ids[start : start + window + 1])
        yield Example(piece, (False, *[True] * (len(piece) - 1)))


def answer_example(row: Row, reader: Reader) -> Example:
    """An example of a row that holds an answer. Raises RowError."""
    if isinstance(row, Chat):
        return chat_example(row, reader)
    if isinstance(row, Continuation):
        return continuation_example(row, reader)
    raise RowError("it has no answer to learn: give messages, an instruction and its output, or prompt and completion")


def continuation_example(row: Continuation, reader: Reader) -> Example:
    """Plain text with the loss on how it goes on, and on the end of it."""
    if reader.start_id is not None:
        return reader.pair(row.prompt, row.completion)
    if reader.tokenizer.ends_prompts:
        asked = reader.tokenizer.encode_ids(row.prompt)
        answer = [*reader.tokenizer.encode_ids(row.completion, add_special_tokens=False), reader.end_ids[0]]
        return reader.within([*asked, *answer], [*[False] * len(asked), *[True] * len(answer)])
    text = row.prompt + row.completion
    encoding = reader.tokenizer.encode(text)
    is_label = [end > start >= len(row.prompt) for start, end in encoding.offsets]
    return reader.within([*encoding.ids, reader.end_ids[0]], [*is_label, True])


def chat_example(chat: Chat, reader: Reader, *, first: int = 0) -> Example:
    """One conversation, with the loss on every assistant message from the `first` on, through the token that ends it.

    Where an answer lies is found by rendering the chat up to it and through it, so any template will do whose
    rendering of a chat begins with its rendering of the chat's beginning. Raises RowError.
    """
    if reader.start_id is not None:
        return reader.pair(*_last_turn(chat))
    tokenizer = reader.tokenizer
    written = _written(chat, len(chat.messages), tokenizer)
    encoding = tokenizer.encode_chat(written)
    ids, is_label = list(encoding.ids), [False] * len(encoding.ids)
    for start, end in _answer_spans(chat, written.text, tokenizer, first):
        for at in _spoken(ids, encoding.offsets, start, end, reader.end_ids):
            is_label[at] = True
    if not any(is_label[1:]):
        raise RowError("nothing to learn: the chat has no message of the assistant, or all of them have weight 0")
    if is_label[-1] and ids[-1] not in reader.end_ids:  # the template leaves the end of the last turn open
        ids, is_label = [*ids, reader.end_ids[0]], [*is_label, True]
    return reader.within(ids, is_label)


def pair_of(row: Row, reader: Reader) -> Pair:
    """Both answers of a preference, each with the loss on itself alone. Raises RowError."""
    match row:
        case Preference(Chat() as chosen, Chat() as rejected, num_shared):
            return Pair(
                chat_example(chosen, reader, first=num_shared), chat_example(rejected, reader, first=num_shared)
            )
        case Preference(Continuation() as chosen, Continuation() as rejected):
            return Pair(continuation_example(chosen, reader), continuation_example(rejected, reader))
    raise RowError("it has no two answers to compare: give prompt, chosen and rejected")


def asked(row: Row, reader: Reader, *, room: int) -> Asked:
    """A prompt, with room for an answer of so many tokens; where it must be cut, its end stays. Raises RowError."""
    if not isinstance(row, Prompt):
        raise RowError("it is no prompt alone: give prompt, and no answer")
    if isinstance(row.prompt, str):
        ids = reader.tokenizer.encode_ids(row.prompt)
    else:
        ids = reader.tokenizer.chat_ids(_written(Chat(row.prompt), len(row.prompt), reader.tokenizer, asks=True))
    limit = reader.longest - room
    if limit < 1:
        raise RowError(f"an answer of {room} tokens leaves no room for a prompt: the limit of both is {reader.longest}")
    if len(ids) > limit and not reader.truncates:
        raise RowError(f"a prompt of {len(ids)} tokens, the limit beside an answer of {room} is {limit}")
    return Asked(tuple(ids[-limit:]), row.prompt)


def _last_turn(chat: Chat) -> tuple[str, str]:
    """What the user said last and the answer to it: an encoder-decoder is asked so. Raises RowError."""
    *before, answer = chat.messages
    asked = [message["content"] for message in before if message["role"] == "user"]
    if answer["role"] != "assistant" or not asked:
        raise RowError("nothing to learn: the chat must end with the assistant's answer to a user's message")
    return asked[-1], answer["content"]


def _written(chat: Chat, num_messages: int, tokenizer: Tokenizer, *, asks: bool = False) -> Written:
    extra = {"tools": list(chat.tools)} if chat.tools else None
    messages: list[Message] = [
        {name: value for name, value in message.items() if name != "weight"} for message in chat.messages[:num_messages]
    ]
    return tokenizer.write_chat(messages, add_generation_prompt=asks, extra=extra)


def _answer_spans(chat: Chat, text: str, tokenizer: Tokenizer, first: int) -> Iterator[tuple[int, int]]:
    """Where in the text each answer to learn begins and where the template goes on after it."""
    for number, message in enumerate(chat.messages):
        if number < first or message["role"] != "assistant" or message.get("weight") == 0:
            continue
        before = _written(chat, number, tokenizer, asks=True).text
        through = _written(chat, number + 1, tokenizer).text
        if not (text.startswith(through) and through.startswith(before)):
            raise RowError(
                f"the chat template writes message {number} otherwise once others follow: end the chat there"
            )
        yield len(before), len(through)


def _spoken(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], start: int, end: int, end_ids: Sequence[int]
) -> Iterator[int]:
    """Places of the tokens that begin within the span, through the first that ends the turn."""
    for at, (begin, _) in enumerate(offsets):
        if start <= begin < end:
            yield at
            if ids[at] in end_ids:
                return
