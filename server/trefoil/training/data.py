"""Rows to Examples: plain text in windows, chats with the loss on what the assistant says."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain

from trefoil.training.batch import Example
from trefoil_models.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, object]]


class RowError(ValueError):
    """A row that no example can be made of; the message says why and what to do."""


def text_examples(texts: Iterable[str], tokenizer: Tokenizer, *, window: int, eos_id: int) -> Iterator[Example]:
    """All texts end to end, eos after each, cut into windows of `window` rows; every token is predicted once."""
    documents = ([*tokenizer.encode_ids(text, add_special_tokens=False), eos_id] for text in texts)
    ids = list(chain.from_iterable(documents))
    for start in range(0, len(ids) - 1, window):
        piece = tuple(ids[start : start + window + 1])
        yield Example(piece, (False, *[True] * (len(piece) - 1)))


def chat_example(messages: Messages, tokenizer: Tokenizer, *, end_ids: Collection[int], longest: int) -> Example:
    """One conversation, with the loss on every assistant message up to and including the token that ends it.

    Where an answer lies is found by rendering the chat up to it and through it, so any template will do whose
    rendering of a chat begins with its rendering of the chat's beginning. Raises RowError.
    """
    text = tokenizer.render_chat(messages, add_generation_prompt=False)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    if len(encoding.ids) > longest:
        raise RowError(f"a chat of {len(encoding.ids)} tokens, the limit is {longest}: shorten it or split it")
    is_label = [False] * len(encoding.ids)
    for start, end in _answer_spans(messages, text, tokenizer):
        for at in _spoken(encoding.ids, encoding.offsets, start, end, end_ids):
            is_label[at] = True
    if not any(is_label[1:]):
        raise RowError("a chat without an assistant message has nothing to learn from")
    return Example(tuple(encoding.ids), (False, *is_label[1:]))


def _answer_spans(messages: Messages, text: str, tokenizer: Tokenizer) -> Iterator[tuple[int, int]]:
    """Where in the text each answer begins and where the template goes on after it."""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.render_chat(messages[:number], add_generation_prompt=True)
        through = tokenizer.render_chat(messages[: number + 1], add_generation_prompt=False)
        if not (text.startswith(through) and through.startswith(before)):
            raise RowError(
                f"the chat template writes message {number} otherwise once others follow: end the chat there"
            )
        yield len(before), len(through)


def _spoken(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], start: int, end: int, end_ids: Collection[int]
) -> Iterator[int]:
    """Places of the tokens that begin within the span, through the first that ends the turn."""
    for at, (begin, _) in enumerate(offsets):
        if start <= begin < end:
            yield at
            if ids[at] in end_ids:
                return
