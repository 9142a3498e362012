"""Reads a tiktoken file (each line a token's bytes in base64 and its rank) into a tokenizer of `tokenizers`.

A rank is the token's id and its place in line: of all neighbours that make a token together, those of the lowest rank
join first. Which file it is, and the special tokens behind the ranks, is `tokenizer_files`' business.
"""

from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

# How text is cut before tokens join: GPT-2's way, save that newlines stay with punctuation and digits come alone.
ONE_DIGIT_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
THREE_DIGIT_WORDS = ONE_DIGIT_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def read_ranks(data: bytes) -> dict[bytes, int]:
    """Each token's rank. Raises ValueError where the file is not of this kind or leaves a byte or a rank out."""
    pairs = [line.split() for line in data.splitlines() if line.strip()]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError("it has not a token and a rank on each line")
    ranks = {b64decode(token, validate=True): int(rank) for token, rank in pairs}
    if sorted(ranks.values()) != list(range(len(pairs))):
        raise ValueError(f"its ranks are not the numbers 0 to {len(pairs) - 1}")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ValueError(f"the byte {missing[0]} is no token")
    return ranks


def build(
    ranks: Mapping[bytes, int], *, words: str, specials: Iterable[str], normalizer: normalizers.Normalizer | None = None
) -> tokenizers.Tokenizer:
    """The tokenizer of these ranks, which cuts text into `words` first; special tokens get the ids behind the ranks."""
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    spelled = {token: "".join(letters[byte] for byte in token) for token in sorted(ranks, key=ranks.__getitem__)}
    vocab = {text: ranks[token] for token, text in spelled.items()}
    # a word that is a token by itself is not cut at all, even where no merges lead to it
    model = models.BPE(vocab=vocab, merges=list(_merges(spelled)), ignore_merges=True)
    backend = tokenizers.Tokenizer(model)
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    return backend


def byte_alphabet() -> dict[str, int]:
    """The letters in which byte-level BPE writes bytes: printable Latin-1 as itself, the others from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _merges(spelled: Mapping[bytes, str]) -> Iterator[tuple[str, str]]:
    """Every way to make a token of two others, lowest rank first."""
    for token in spelled:
        for cut in range(1, len(token)):
            left, right = spelled.get(token[:cut]), spelled.get(token[cut:])
            if left is not None and right is not None:
                yield left, right
