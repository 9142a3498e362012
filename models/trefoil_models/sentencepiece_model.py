"""Reads a SentencePiece `tokenizer.model` and turns it into the same tokenizer for the `tokenizers` library.

Also what only SentencePiece does: the word mark put before a text (`DummyPrefix`) and characters spelled as byte pieces
(`join_bytes`). Finding the file and knowing the model's special tokens is left to `tokenizer`.
"""

import re
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import pairwise

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers

WORD_MARK = "▁"
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")
NEVER = -1e9
"""The score of a piece that no way to cut a text should have."""
LONE_BYTE = re.compile("[\udc80-\udcff]")


class Kind(IntEnum):
    """What a piece is for, as numbered in the file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6
    RESERVED = 7
    """In no file: holds a place, and no text is ever cut to it."""


class Algorithm(IntEnum):
    """How text is cut, as numbered in the file."""

    UNIGRAM = 1
    BPE = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary; its id is its place in the list."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What the file says, as far as encoding and decoding need it."""

    pieces: list[Piece]
    algorithm: int = Algorithm.UNIGRAM
    byte_fallback: bool = False
    ids: dict[str, int] = field(default_factory=dict)  # of "unk", "bos", "eos", "pad"; negative where there is none
    charsmap: bytes = b""
    has_dummy_prefix: bool = True
    trims_spaces: bool = True
    trims_between: bool = False
    """Are spaces also trimmed before and behind each piece of the user's own?"""

    @classmethod
    def parse(cls, data: bytes) -> "SentencePieceModel":
        """Read the protobuf; ValueError where it is not one we can follow."""
        if not data.startswith(b"\x0a"):
            raise ValueError("it does not begin like a SentencePiece model")
        parts = list(_fields(data))
        trainer = dict(_fields(_last(parts, 2)))
        normalizer = dict(_fields(_last(parts, 3)))
        if _number(trainer, 24, 0):
            raise ValueError("it marks word ends (treat_whitespace_as_suffix), which is not supported")
        return cls(
            pieces=[_piece(value) for key, value in parts if key == 1 and isinstance(value, bytes)],
            algorithm=_number(trainer, 3, Algorithm.UNIGRAM),
            byte_fallback=bool(_number(trainer, 35, 0)),
            ids={name: _number(trainer, key, default) for name, key, default in _ID_FIELDS},
            charsmap=_bytes(normalizer, 2),
            has_dummy_prefix=bool(_number(normalizer, 3, 1)),
            trims_spaces=bool(_number(normalizer, 4, 1)),
        )

    def token(self, name: str) -> str | None:
        """The piece that plays a part: "unk", "bos", "eos" or "pad"."""
        place = self.ids.get(name, -1)
        return self.pieces[place].text if 0 <= place < len(self.pieces) else None

    def renamed(self, names: Mapping[int, str]) -> "SentencePieceModel":
        """The same model with reserved pieces under the names that a tokenizer config gives them."""
        pieces = [replace(piece, text=names.get(place, piece.text)) for place, piece in enumerate(self.pieces)]
        return replace(self, pieces=pieces)

    def trimming_between(self) -> "SentencePieceModel":
        """The same model, for which what stands between pieces of the user's own is a text of its own."""
        return replace(self, trims_between=True)

    def without_prefix(self) -> "SentencePieceModel":
        """The same model, taking texts as they begin."""
        return replace(self, has_dummy_prefix=False)

    def extended(self, controls: Iterable[str]) -> "SentencePieceModel":
        """The same model with more control tokens behind its pieces."""
        return replace(self, pieces=[*self.pieces, *(Piece(text, 0.0, Kind.CONTROL) for text in controls)])

    def shifted(self, names: Iterable[str]) -> "SentencePieceModel":
        """The same model with pieces that no text has before its own."""
        before = [Piece(name, NEVER, Kind.RESERVED) for name in names]
        ids = {name: place + len(before) if place >= 0 else place for name, place in self.ids.items()}
        return replace(self, pieces=[*before, *self.pieces], ids=ids)

    def user_defined(self) -> set[str]:
        """The pieces that text is always cut around, but that are text themselves."""
        return {piece.text for piece in self.pieces if piece.kind == Kind.USER_DEFINED}


@dataclass(frozen=True, slots=True)
class DummyPrefix:
    """Puts the word mark where a space is assumed: before a text, and in "legacy" models after each control token."""

    places: re.Pattern[str]

    @classmethod
    def around(cls, controls: Iterable[str], *, legacy: bool) -> "DummyPrefix":
        """For a tokenizer that finds these control tokens in a text."""
        names = (rf"\b{name}\b" if name.isalpha() else re.escape(name) for name in controls)
        control = "|".join(sorted(names, key=len, reverse=True)) or "(?!)"
        before = rf"(?:\A|{control})" if legacy else r"\A"
        return cls(re.compile(rf"{before}(?!{control}|\Z)"))

    def put(self, text: str) -> tuple[str, list[int]]:
        """The text with marks, and where in it they stand."""
        spots = [match.end() for match in self.places.finditer(text)]
        edges = [0, *spots, len(text)]
        marked = WORD_MARK.join(text[start:end] for start, end in pairwise(edges))
        return marked, [spot + i for i, spot in enumerate(spots)]


def unmarked(position: int, marks: list[int]) -> int:
    """Where a position in a marked text lies in the text itself."""
    return position - bisect_left(marks, position)


def build(model: SentencePieceModel, spelled: Mapping[str, str] | None = None) -> tokenizers.Tokenizer:
    """The same model for the `tokenizers` library, without the dummy prefix.

    `spelled`: runs of text that are replaced by such pieces before anything else, in order, and back in the end.
    """
    spelled = spelled or {}
    backend = tokenizers.Tokenizer(_algorithm(model))
    first = [normalizers.Replace(text, piece) for text, piece in spelled.items()]
    backend.normalizer = normalizers.Sequence([*first, *_normalizers(model)])
    back = [decoders.Replace(piece, text) for text, piece in spelled.items()]
    steps = [decoders.Replace(WORD_MARK, " "), *back, decoders.ByteFallback(), decoders.Fuse()]
    if model.has_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    backend.add_tokens(
        [
            AddedToken(
                piece.text,
                normalized=piece.text in spelled.values() or _is_found_normalized(piece, model, backend.normalizer),
                special=piece.kind != Kind.USER_DEFINED,
                single_word=piece.kind == Kind.CONTROL and piece.text.isalpha(),
            )
            for piece in model.pieces
            if piece.kind in (Kind.UNKNOWN, Kind.CONTROL, Kind.USER_DEFINED)
        ]
    )
    return backend


def _is_found_normalized(piece: Piece, model: SentencePieceModel, normalizer: normalizers.Normalizer) -> bool:
    """Must it be looked for in what becomes of a text, not in the text?

    Where spaces are trimmed at a text's ends, those before and behind such a piece stay; where they are not, a Unigram
    model finds pieces with word marks by itself.
    """
    if piece.kind != Kind.USER_DEFINED:
        return False
    if model.trims_spaces:
        return not model.trims_between and bool(normalizer.normalize_str(piece.text) == piece.text)
    return WORD_MARK in piece.text and model.algorithm == Algorithm.BPE


def join_bytes(tokens: Iterable[str]) -> list[str]:
    """Replace each run of byte pieces by the text it spells; a byte that belongs to no character becomes U+FFFD.

    The library's own decoder gives up a whole run for one bad byte, which would take back characters already streamed;
    SentencePiece itself does it this way.
    """
    joined: list[str] = []
    run = bytearray()
    for token in tokens:
        if match := BYTE_PIECE.fullmatch(token):
            run.append(int(match[1], 16))
            continue
        if run:
            joined.append(_spelled(run))
            run.clear()
        joined.append(token)
    return [*joined, _spelled(run)] if run else joined


def _spelled(run: bytearray) -> str:
    return LONE_BYTE.sub("\ufffd", run.decode("utf-8", errors="surrogateescape"))


def _algorithm(model: SentencePieceModel) -> models.Model:
    """The vocabulary and the way to cut text with it."""
    match model.algorithm:
        case Algorithm.BPE:
            return models.BPE(
                vocab={piece.text: place for place, piece in enumerate(model.pieces)},
                merges=_merges(model.pieces),
                unk_token=model.token("unk"),
                fuse_unk=True,
                byte_fallback=model.byte_fallback,
            )
        case Algorithm.UNIGRAM:
            vocab = [(piece.text, piece.score) for piece in model.pieces]
            return models.Unigram(vocab, model.ids["unk"], model.byte_fallback)
    raise ValueError("it is neither a BPE nor a Unigram model")


def _merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first: SentencePiece joins any two that make a piece."""
    scores = {piece.text: piece.score for piece in pieces if piece.kind in (Kind.NORMAL, Kind.UNUSED)}
    ranked = sorted(scores, key=scores.__getitem__, reverse=True)
    return [
        (text[:cut], text[cut:])
        for text in ranked
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]


def _normalizers(model: SentencePieceModel) -> Iterator[normalizers.Normalizer]:
    if model.charsmap:
        yield normalizers.Precompiled(model.charsmap)
    if model.trims_spaces:
        yield normalizers.Replace(Regex(rf"\A{WORD_MARK}? +| +\z"), WORD_MARK if model.has_dummy_prefix else "")
        yield normalizers.Replace(Regex(rf"{WORD_MARK}+\z"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")
    yield normalizers.Replace(" ", WORD_MARK)


# The protobuf fields we read, by the numbers of sentencepiece_model.proto.
_ID_FIELDS = (("unk", 40, 0), ("bos", 41, 1), ("eos", 42, 2), ("pad", 43, -1))


def _piece(data: bytes) -> Piece:
    parts = dict(_fields(data))
    (score,) = struct.unpack("<f", _bytes(parts, 2) or bytes(4))
    return Piece(_bytes(parts, 1).decode(), score, _number(parts, 3, Kind.NORMAL))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The numbered fields of a protobuf message: varints as numbers, all else as bytes."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        match tag & 7:
            case 0:
                value, place = _varint(data, place)
                yield tag >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, place = _varint(data, place)
            case 5:
                size = 4
            case _:
                raise ValueError("it is not a protobuf message")
        if place + size > len(data):
            raise ValueError("it is cut short")
        yield tag >> 3, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, low bits first, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise ValueError("it is cut short")
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("it is not a protobuf message")


def _last(parts: list[tuple[int, int | bytes]], key: int) -> bytes:
    return _bytes(dict(parts), key)


def _bytes(parts: Mapping[int, int | bytes], key: int) -> bytes:
    value = parts.get(key, b"")
    if not isinstance(value, bytes):
        raise ValueError(f"field {key} has the wrong type")
    return value


def _number(parts: Mapping[int, int | bytes], key: int, default: int) -> int:
    value = parts.get(key, default)
    if not isinstance(value, int):
        raise ValueError(f"field {key} has the wrong type")
    return value - (1 << 64) if value >> 63 and value > 0 else value
