"""Grammars that answers must follow: which tokens may come next, as llguidance finds them.

A grammar is llguidance's own text, which the API makes of a JSON schema, a regular expression, choices or rules. Each
answer has a matcher of its own, which walks on with every token. The mathematics: Earley's parser over derivatives of
regular expressions, and a walk of the trie of all tokens (https://github.com/guidance-ai/llguidance).
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import structlog
import torch
from torch import Tensor

from trefoil.deep_stack import on_deep_stack
from trefoil.errors import is_panic
from trefoil_models.tokenizer import HALF, Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

T = TypeVar("T")

log = structlog.get_logger()

MOST_COMPILED = 64
"""Grammars that are kept compiled."""


class GrammarError(ValueError):
    """A grammar that cannot be compiled, or that an answer cannot be led by any further."""


class Grammars:
    """What one model's tokens spell, and the grammars asked for lately. Takes its time at the first one only.

    `begins_texts`: answers stand alone, as an encoder-decoder's do, so that the space which SentencePiece puts before
    the first word is no part of them.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, vocab_size: int, eos_ids: Sequence[int], begins_texts: bool = False
    ) -> None:
        self._tokenizer, self._vocab_size, self._eos_ids = tokenizer, vocab_size, list(eos_ids)
        self._begins_texts = begins_texts
        self._vocabularies: Vocabularies | None = None
        self._compiled: OrderedDict[str, Guide] = OrderedDict()

    def guide(self, grammar: str) -> "Guide":
        """The beginning of an answer. Raises GrammarError."""
        if grammar not in self._compiled:
            self._compiled[grammar] = guarded(lambda: on_deep_stack(lambda: self._compile(grammar)))
        self._compiled.move_to_end(grammar)
        if len(self._compiled) > MOST_COMPILED:
            self._compiled.popitem(last=False)
        return self._compiled[grammar].copy()

    def _compile(self, grammar: str) -> "Guide":
        if self._vocabularies is None:
            self._vocabularies = self._read()
        within, first = self._vocabularies.within, self._vocabularies.first
        return Guide(
            _matcher(within, grammar), self._vocabularies, first=None if first is None else _matcher(first, grammar)
        )

    def _read(self) -> "Vocabularies":
        """Where no token ends texts, one is made up behind the last, so that the end of a grammar can be told."""
        eos_ids = self._eos_ids or [self._vocab_size]
        words = [self._tokenizer.token_bytes(i) for i in range(max(self._vocab_size, *(i + 1 for i in eos_ids)))]
        specials = frozenset({*self._tokenizer.special_ids, *eos_ids})
        first = [self._first_word(i, word) for i, word in enumerate(words)] if self._begins_texts else words
        within = _vocabulary(words, specials, eos_ids)
        return Vocabularies(
            self._vocab_size, within, None if first == words else _vocabulary(first, specials, eos_ids), first
        )

    def _first_word(self, token_id: int, word: bytes) -> bytes:
        return self._tokenizer.decode([token_id]).encode() if word.startswith(b" ") and len(word) > 1 else word


@dataclass(frozen=True, slots=True)
class Vocabularies:
    """What tokens spell within a text, and as `first_words` at its beginning, where that is not the same."""

    size: int
    within: "LLTokenizer"
    first: "LLTokenizer | None"
    first_words: list[bytes]


class Words:
    """A vocabulary as llguidance asks for it."""

    def __init__(self, words: list[bytes], specials: frozenset[int], eos_ids: list[int]) -> None:
        self.tokens, self.special_token_ids = words, sorted(specials)
        self.eos_token_id, self.bos_token_id = eos_ids[0], None

    def __call__(self, text: bytes) -> list[int]:
        """A text's tokens: not asked for by grammars with the option `no_forcing`, as all of ours are."""
        raise NotImplementedError


def _vocabulary(words: list[bytes], specials: frozenset[int], eos_ids: list[int]) -> "LLTokenizer":
    from llguidance import LLTokenizer, TokenizerWrapper  # who is asked for no grammar does without

    return LLTokenizer(TokenizerWrapper(Words(words, specials, eos_ids)), n_vocab=len(words), eos_token=eos_ids)


def _matcher(vocabulary: "LLTokenizer", grammar: str) -> "LLMatcher":
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
    if matcher.is_error():
        raise GrammarError(_told(matcher.get_error()))
    return matcher


class Guide:
    """Where one answer stands in its grammar. `error`: why it cannot go on, if it cannot."""

    def __init__(self, matcher: "LLMatcher", vocabularies: Vocabularies, *, first: "LLMatcher | None" = None) -> None:
        self._matcher, self._vocabularies, self._first = matcher, vocabularies, first
        self.error: str | None = None

    def copy(self) -> "Guide":
        """Another answer at the same place."""
        first = None if self._first is None else self._first.deep_copy()
        return Guide(self._matcher.deep_copy(), self._vocabularies, first=first)

    @property
    def is_done(self) -> bool:
        """Is the answer whole, so that nothing may follow?"""
        return self.error is None and self._matcher.is_stopped()

    def take(self, token: int) -> None:
        """The answer goes on with this token."""
        tokens = [token]
        if self._first is not None:
            text = self._vocabularies.first_words[token].decode(errors="replace")
            tokens = self._vocabularies.within.greedy_tokenize(text) if HALF not in text else tokens
            self._first = None
        self._try(lambda: self._matcher.consume_tokens(tokens))

    def forbidden(self, device: torch.device) -> Tensor:
        """Which tokens may not come next, bool [V]; none where the answer cannot go on anyway."""
        size, matcher = self._vocabularies.size, self._first or self._matcher
        bits = self._try(matcher.compute_bitmask)
        if bits is None:
            return torch.zeros(size, dtype=torch.bool, device=device)
        inverted = np.unpackbits(~np.frombuffer(bits, dtype=np.uint8), count=size, bitorder="little")
        return torch.from_numpy(inverted.view(np.bool_)).to(device)

    def _try(self, work: Callable[[], T]) -> T | None:
        if self.error is None:
            try:
                found = guarded(work)
                if not self._matcher.is_error():
                    return found
                self.error = _told(self._matcher.get_error())
            except GrammarError as error:
                self.error = str(error)
        return None


def _told(error: str) -> str:
    return error.partition("\n")[0]


def guarded(work: Callable[[], T]) -> T:
    """The library's panics, which are no Exception, and its errors as GrammarError; they are told in the log alone."""
    try:
        return work()
    except GrammarError:
        raise
    except BaseException as error:
        if isinstance(error, (ValueError, RuntimeError)) or is_panic(error):
            log.warning("grammar_failed", why=str(error))
            raise GrammarError("the library that follows it fails") from error
        raise
