"""Text <-> ids for one model folder: encoding, decoding (whole or as a stream), special ids, the chat template.

What the folder's files say is `tokenizer_files`' business; imports no torch.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import count, islice, takewhile
from pathlib import Path
from typing import cast

import tokenizers
from tokenizers import decoders

from trefoil_models.chat_template import FALLBACK, ChatTemplate, ChatTemplateError
from trefoil_models.cutting import Cut, Encoding, TooSparseError, cut_to, end_to_end
from trefoil_models.family_chats import Chat, FamilyChat, Kind, Part, family_chat
from trefoil_models.sentencepiece_model import BYTE_PIECE, WORD_MARK, DummyPrefix, join_bytes, unmarked
from trefoil_models.tiktoken_file import byte_alphabet
from trefoil_models.tokenizer_files import WORD_END, Roles, TokenizerError, read_parts, sentinel

__all__ = ["Encoding", "Roles", "TextStream", "Tokenizer", "TokenizerError"]

WINDOW = 16  # ids a stream looks back on: more than one character, and all bytes that could still be one, can need
CHARS_A_TOKEN = 12  # where to cut a long text first: seldom has a token more
MOST_READ_CHARS = 2_000_000  # to find the first tokens: a word of megabytes is one unknown token, found in seconds
LONG_CHARS = 2000  # what is longer is encoded so that other threads go on, which costs some microseconds
CLEAR_CHARS = 256  # between the last token that counts and the cut: WordPiece looks at no longer word than 100
HALF = "\ufffd"  # what bytes decode to that are not (yet) a character


class Tokenizer:
    """What a model's folder says about text; with `ends_prompts` an answer begins behind the tokens around a text.

    Where texts do not `name tokens`, the spelling of a special token in one is text like any other.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        roles: Roles,
        *,
        prefix: DummyPrefix | None = None,
        template: str | None = None,
        chat: FamilyChat | None = None,
        names_tokens: bool = True,
        longest: int | None = None,
    ) -> None:
        self._backend = backend
        self._prefix = prefix
        self._names_tokens = names_tokens
        self.longest = longest
        vocab = backend.get_vocab(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.vocab_len = max(vocab.values(), default=-1) + 1
        self.undecodable = frozenset(range(self.vocab_len)) - frozenset(vocab.values())
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.bos_id = _known(vocab, roles.bos)
        self.eos_id = _known(vocab, roles.eos)
        self.pad_id = _known(vocab, roles.pad)
        self.unk_id = _known(vocab, roles.unk)
        self.mask = roles.mask if _known(vocab, roles.mask) is not None else None
        self.mask_id = _known(vocab, roles.mask)
        self.cls_id = _known(vocab, roles.cls)
        self.marks_subwords = bool(getattr(backend.model, "continuing_subword_prefix", None))
        self._marks_word_ends = getattr(backend.model, "end_of_word_suffix", None) == WORD_END
        self._added_ids = frozenset(added)
        framed = self.encode_ids("")
        self.ends_prompts = len(framed) > 1 and framed[-1] == self.bos_id
        self.sentinel_ids = tuple(_sentinels(vocab))
        self._decoder = backend.decoder
        decoding = _state(backend.decoder)
        self._spells_bytes = "ByteFallback" in decoding
        self._marks_words = WORD_MARK in decoding
        self._alphabet = byte_alphabet() if "ByteLevel" in decoding else {}
        self.chat_template = template
        self.has_chat_template = template is not None
        self._family_chat = None if self.has_chat_template else chat
        self._turn_ends = chat.ends if chat else ()
        leading_bos = roles.bos if roles.bos is not None and self.bos_id in self.encode_ids("")[:1] else ""
        self._template = ChatTemplate(template or FALLBACK, {**roles.named(), "leading_bos": leading_bos})

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of a model folder; TokenizerError where there is none that can be read."""
        parts = read_parts(folder)
        return cls(
            parts.backend,
            parts.roles,
            prefix=parts.prefix,
            template=parts.template,
            chat=family_chat(folder, parts.backend),
            names_tokens=parts.names_tokens,
            longest=parts.longest,
        )

    @property
    def takes_pairs(self) -> bool:
        """Whether two texts can be encoded as a pair; no model with a prefix of ours was made for it."""
        return self._prefix is None

    def encode(self, text: str, *, pair: str | None = None, add_special_tokens: bool = True) -> Encoding:
        """The text as tokens, with their places in it; those of a second text, of type 1, have their places in that."""
        assert pair is None or self.takes_pairs
        if not self._names_tokens:
            return self._encode_plainly(text, pair, add_special_tokens=add_special_tokens)
        return self._encode_named(text, pair, add_special_tokens=add_special_tokens)

    def encode_within(self, text: str, limit: int, *, pair: str | None = None, cut: Cut = "longest") -> Encoding:
        """The same cut to `limit` tokens, of a long text reading no more than that takes.

        Raises TooLittleRoomError, TooSparseError.
        """
        text = self.beginning(text, limit)
        pair = None if pair is None else self.beginning(pair, limit)
        return cut_to(self.encode(text, pair=pair), limit, cut=cut)

    def beginning(self, text: str, num_tokens: int) -> str:
        """So much of a text that its first `num_tokens` tokens are those of the whole; all of it where it is short.

        What follows a token can change it only as far as a word reaches, so the cut stays clear of the last token.
        Raises TooSparseError.
        """
        size = CHARS_A_TOKEN * (num_tokens + 1)
        while size < len(text):
            offsets = self.encode(text[:size], add_special_tokens=False).offsets
            if len(offsets) > num_tokens and offsets[num_tokens][1] + CLEAR_CHARS <= size:
                return text[:size]
            if min(2 * size, len(text)) > MOST_READ_CHARS:
                raise TooSparseError(f"{size} characters of a text hold {len(offsets)} tokens; is it text?")
            size *= 2
        return text

    def encode_ids(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids alone, which is cheaper."""
        if not self._names_tokens:
            return self.encode(text, add_special_tokens=add_special_tokens).ids
        marked = self._prefix.put(text)[0] if self._prefix else text
        return self._backend.encode_batch_fast([marked], add_special_tokens=add_special_tokens)[0].ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of these ids; an id that no token has says nothing."""
        return self.spell([i for i in ids if self.is_audible(i, skip_special_tokens=skip_special_tokens)])

    def spell(self, audible: list[int]) -> str:
        """The text of ids that all say something."""
        if not self._spells_bytes:
            return self._backend.decode(audible, skip_special_tokens=False)
        tokens = [self._backend.id_to_token(token_id) or "" for token_id in audible]
        return cast(str, self._decoder.decode(join_bytes(tokens)))

    def token_id(self, token: str) -> int | None:
        """The id of this very token; None where the vocabulary has none."""
        return self._backend.token_to_id(token)

    def join(self, tokens: list[str]) -> str:
        """The text that these tokens spell together."""
        return self._backend.decoder.decode(tokens) if self._backend.decoder else " ".join(tokens)

    def is_audible(self, token_id: int, *, skip_special_tokens: bool) -> bool:
        """Whether decoding takes any notice of this id."""
        if not 0 <= token_id < self.vocab_len or token_id in self.undecodable:
            return False
        return not (skip_special_tokens and token_id in self.special_ids)

    def token_text(self, token_id: int) -> str:
        """What this token alone says, with its leading space; U+FFFD for bytes that are no character by themselves."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes this token stands for within a text."""
        token = self._backend.id_to_token(token_id) if 0 <= token_id < self.vocab_len else None
        if token is None:
            return b""
        if token_id in self._added_ids and not self._marks_words:
            return token.encode()
        if self._alphabet and all(letter in self._alphabet for letter in token):
            return bytes(self._alphabet[letter] for letter in token)
        if self._spells_bytes and (byte := BYTE_PIECE.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        text = token.removesuffix(WORD_END) + " " if self._marks_word_ends and token.endswith(WORD_END) else token
        return (text.replace(WORD_MARK, " ") if self._marks_words else text).encode()

    @property
    def writes_chats(self) -> bool:
        """Does the folder or its family say how chats are written?"""
        return self.has_chat_template or self._family_chat is not None

    def end_ids(self, named: tuple[int, ...]) -> tuple[int, ...]:
        """What ends texts: the ids that the folder names, or else the tokenizer's own."""
        return named or (() if self.eos_id is None else (self.eos_id,))

    @property
    def turn_end_ids(self) -> tuple[int, ...]:
        """What ends a turn of a chat besides the folder's eos, also where the folder stores a template."""
        return tuple(token_id for end in self._turn_ends if (token_id := self.token_id(end)) is not None)

    @property
    def chat_fault(self) -> str | None:
        """Why the folder's template writes no chat at all; None where it does, or the family writes them."""
        return None if self._family_chat is not None else self._template.fault

    def write_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        extra: Mapping[str, object] | None = None,
    ) -> Chat:
        """A conversation as the folder's template writes it, or else its family. Raises ChatTemplateError."""
        if self._family_chat is None:
            text = self._template.render(messages, add_generation_prompt=add_generation_prompt, extra=extra)
            return Chat((Part(text, Kind.MARKED),))
        for name, value in (extra or {}).items():
            if value is not None:
                raise ChatTemplateError(f"this family's chats know no {name}")
        return Chat(tuple(self._family_chat.write(messages, add_generation_prompt)))

    def render_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        extra: Mapping[str, object] | None = None,
    ) -> str:
        """The same as one text."""
        return self.write_chat(messages, add_generation_prompt=add_generation_prompt, extra=extra).text

    def encode_chat(self, chat: Chat) -> Encoding:
        """The chat as tokens, with their places in its text."""
        return end_to_end([(self._encode_part(part), len(part.text)) for part in chat.parts])

    def chat_ids(self, chat: Chat) -> list[int]:
        """The ids alone, which is cheaper."""
        return [token_id for part in chat.parts for token_id in self._part_ids(part)]

    def _encode_part(self, part: Part) -> Encoding:
        match part.kind:
            case Kind.TOKEN:
                return Encoding([self._required(part.text)], [part.text], [(0, len(part.text))], [0], [0], [None])
            case Kind.MARKED:
                return self._encode_named(part.text, add_special_tokens=False)
            case Kind.TEXT:
                return self._encode_plainly(part.text, add_special_tokens=False)

    def _part_ids(self, part: Part) -> list[int]:
        is_named = part.kind is Kind.MARKED and self._names_tokens
        return self.encode_ids(part.text, add_special_tokens=False) if is_named else self._encode_part(part).ids

    def _encode_named(self, text: str, pair: str | None = None, *, add_special_tokens: bool) -> Encoding:
        """With the special tokens that the text names."""
        marked, marks = self._prefix.put(text) if self._prefix else (text, [])
        return _encoding(_found(self._backend, marked, pair, add_special_tokens=add_special_tokens), marks)

    def _encode_plainly(self, text: str, pair: str | None = None, *, add_special_tokens: bool) -> Encoding:
        """As text alone."""
        marked, marks = self._plain_prefix.put(text) if self._plain_prefix else (text, [])
        return _encoding(_found(self._plain, marked, pair, add_special_tokens=add_special_tokens), marks)

    def _required(self, token: str) -> int:
        token_id = self.token_id(token)
        if token_id is None:
            raise ChatTemplateError(f"this family's chats need the token {token!r}, which the tokenizer lacks")
        return token_id

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """A copy that takes no text for a special token."""
        plain = tokenizers.Tokenizer.from_str(self._backend.to_str())
        plain.encode_special_tokens = True
        return plain

    @cached_property
    def _plain_prefix(self) -> DummyPrefix | None:
        return DummyPrefix.around((), legacy=False) if self._prefix else None

    def stream(self, prompt_ids: Sequence[int], *, skip_special_tokens: bool) -> "TextStream":
        """The text that generated ids add to this prompt, piece by piece."""
        return TextStream(self, prompt_ids, skip_special_tokens=skip_special_tokens)


class TextStream:
    """Ids to text as they come, never half a character; all pieces together are what decode() says of the whole.

    Decodes a window of the latest ids and gives out what it has not shown yet. Text is held back only while it ends in
    bytes that the next id may complete.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skips = skip_special_tokens
        heard = (token_id for token_id in reversed(prompt_ids) if self._is_audible(token_id))
        self._window = list(islice(heard, WINDOW))[::-1]
        self._shown = tokenizer.spell(self._window)

    def push(self, token_id: int) -> str:
        """The text that this id completes, perhaps none."""
        if not self._is_audible(token_id):
            return ""
        self._window.append(token_id)
        text = self._tokenizer.spell(self._window)
        fresh = self._show(_settled(text))
        if len(self._window) >= 2 * WINDOW:
            self._forget(held=_after(self._shown, text))
        return fresh

    def flush(self) -> str:
        """What was held back, now that no more ids come."""
        return self._show(self._tokenizer.spell(self._window))

    def _show(self, text: str) -> str:
        fresh = _after(self._shown, text)
        if fresh:
            self._shown = text
        return fresh

    def _forget(self, *, held: str) -> None:
        """Keep only the latest ids, and of their text the same tail as not yet shown."""
        self._window = self._window[-WINDOW:]
        self._shown = self._tokenizer.spell(self._window).removesuffix(held)

    def _is_audible(self, token_id: int) -> bool:
        return self._tokenizer.is_audible(token_id, skip_special_tokens=self._skips)


def _settled(text: str) -> str:
    """The text without an end that may still become a character: up to three U+FFFD, as it has four bytes."""
    num_halves = len(text) - len(text.rstrip(HALF))
    return text[: len(text) - min(num_halves, 3)]


def _after(shown: str, text: str) -> str:
    """What the text says beyond what was shown; a shown half character that has become whole counts as not shown."""
    if text.startswith(shown):
        return text[len(shown) :]
    num_common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(shown, text, strict=False)))
    return text[num_common:]


def _found(
    backend: tokenizers.Tokenizer, text: str, pair: str | None, *, add_special_tokens: bool
) -> tokenizers.Encoding:
    """The library keeps Python's lock while it encodes one text, but not while it encodes several."""
    if len(text) + len(pair or "") <= LONG_CHARS:
        return backend.encode(text, pair, add_special_tokens=add_special_tokens)
    batch = [text] if pair is None else [(text, pair)]
    return backend.encode_batch(batch, add_special_tokens=add_special_tokens)[0]


def _encoding(found: tokenizers.Encoding, marks: list[int]) -> Encoding:
    """As the library gives it, of a text in which the prefix put these marks."""
    offsets = found.offsets
    if marks:
        offsets = [(unmarked(start, marks), unmarked(end, marks)) for start, end in offsets]
    return Encoding(found.ids, found.tokens, offsets, found.type_ids, found.sequence_ids, found.word_ids)


def _sentinels(vocab: Mapping[str, int]) -> Iterator[int]:
    """The ids of T5's sentinels from the first on, as long as there are more."""
    for number in count():
        token_id = vocab.get(sentinel(number))
        if token_id is None:
            return
        yield token_id


def _known(vocab: Mapping[str, int], token: str | None) -> int | None:
    return None if token is None else vocab.get(token)


def _state(decoder: decoders.Decoder | None) -> str:
    """What a decoder is made of, as the library itself writes it down."""
    return "" if decoder is None else decoder.__getstate__().decode()
