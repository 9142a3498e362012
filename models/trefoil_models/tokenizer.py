"""Text <-> ids for one model folder: encoding, decoding (whole or as a stream), special ids, the chat template.

Reads `tokenizer.json`, or `vocab.json` with `merges.txt`, or SentencePiece's `tokenizer.model`; imports no torch.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import cast

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from trefoil_models.chat_template import FALLBACK, ChatTemplate
from trefoil_models.sentencepiece_model import (
    BYTE_PIECE,
    WORD_MARK,
    DummyPrefix,
    SentencePieceModel,
    build,
    join_bytes,
    unmarked,
)

# How Qwen2 cuts text before BPE (GPT-2's way, save that every digit stands alone and newlines stay with punctuation).
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WINDOW = 16  # ids a stream looks back on: more than one character, and all bytes that could still be one, can need
HALF = "\ufffd"  # what bytes decode to that are not (yet) a character


class TokenizerError(ValueError):
    """A model folder whose tokenizer files are missing or damaged."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """One text as tokens; offsets are places in the text, (0, 0) for tokens that were added to it."""

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    type_ids: list[int]


@dataclass(frozen=True, slots=True)
class Roles:
    """The tokens with a part to play, by name, and what the tokenizer puts around each text."""

    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    unk: str | None = None
    others: tuple[str, ...] = ()
    add_bos: bool | None = None  # None: the folder does not say
    add_eos: bool | None = None

    def all(self) -> list[str]:
        """Every token with a role: the special ones."""
        return list(dict.fromkeys([*self.named().values(), *self.others]))

    def named(self) -> dict[str, str]:
        """The tokens that templates know by name."""
        named = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad, "unk_token": self.unk}
        return {name: token for name, token in named.items() if token is not None}


class Tokenizer:
    """What a model's folder says about text."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        roles: Roles,
        *,
        prefix: DummyPrefix | None = None,
        template: str | None = None,
    ) -> None:
        self._backend = backend
        self._prefix = prefix
        vocab = backend.get_vocab(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.vocab_len = max(vocab.values(), default=-1) + 1
        self.undecodable = frozenset(range(self.vocab_len)) - frozenset(vocab.values())
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.bos_id = _known(vocab, roles.bos)
        self.eos_id = _known(vocab, roles.eos)
        self.pad_id = _known(vocab, roles.pad)
        self._added_ids = frozenset(added)
        self._decoder = backend.decoder
        decoding = _state(backend.decoder)
        self._spells_bytes = "ByteFallback" in decoding
        self._alphabet = _byte_alphabet() if "ByteLevel" in decoding else {}
        self.has_chat_template = template is not None
        leading_bos = roles.bos if roles.bos is not None and self.bos_id in self.encode_ids("")[:1] else ""
        self._chat = ChatTemplate(template or FALLBACK, {**roles.named(), "leading_bos": leading_bos})

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of a model folder; TokenizerError where there is none that can be read."""
        return _load(folder)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Encoding:
        """The text as tokens, with their places in it."""
        marked, marks = self._prefix.put(text) if self._prefix else (text, [])
        found = self._backend.encode(marked, add_special_tokens=add_special_tokens)
        offsets = [(unmarked(start, marks), unmarked(end, marks)) for start, end in found.offsets]
        return Encoding(found.ids, found.tokens, offsets, found.type_ids)

    def encode_ids(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids alone, which is cheaper."""
        marked = self._prefix.put(text)[0] if self._prefix else text
        return self._backend.encode_batch_fast([marked], add_special_tokens=add_special_tokens)[0].ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of these ids; an id that no token has says nothing."""
        heard = [token_id for token_id in ids if self.is_audible(token_id, skip_special_tokens=skip_special_tokens)]
        if not self._spells_bytes:
            return self._backend.decode(heard, skip_special_tokens=False)
        tokens = [self._backend.id_to_token(token_id) or "" for token_id in heard]
        return cast(str, self._decoder.decode(join_bytes(tokens)))

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
        if token_id in self._added_ids:
            return token.encode()
        if self._alphabet and all(letter in self._alphabet for letter in token):
            return bytes(self._alphabet[letter] for letter in token)
        if self._spells_bytes and (byte := BYTE_PIECE.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return token.replace(WORD_MARK, " ").encode()

    def render_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        extra: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt for a chat, to be encoded without special tokens, as it already holds them."""
        return self._chat.render(messages, add_generation_prompt=add_generation_prompt, extra=extra)

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
        self._shown = self._text()

    def push(self, token_id: int) -> str:
        """The text that this id completes, perhaps none."""
        if not self._is_audible(token_id):
            return ""
        self._window.append(token_id)
        text = self._text()
        fresh = self._show(_settled(text))
        if len(self._window) >= 2 * WINDOW:
            self._forget(held=_after(self._shown, text))
        return fresh

    def flush(self) -> str:
        """What was held back, now that no more ids come."""
        return self._show(self._text())

    def _show(self, text: str) -> str:
        fresh = _after(self._shown, text)
        if fresh:
            self._shown = text
        return fresh

    def _forget(self, *, held: str) -> None:
        """Keep only the latest ids, and of their text the same tail as not yet shown."""
        self._window = self._window[-WINDOW:]
        self._shown = self._text().removesuffix(held)

    def _text(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=self._skips)

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


@dataclass(frozen=True, slots=True)
class _Config:
    """tokenizer_config.json with the older files beside it, and what they say about single tokens."""

    values: Mapping[str, object]
    added: Mapping[int, AddedToken] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "_Config":
        values = {**_json(folder, "special_tokens_map.json"), **_json(folder, "tokenizer_config.json")}
        listed = values.get("added_tokens_decoder")
        if isinstance(listed, Mapping):
            return cls(values, {_place(place): _added_token(token) for place, token in listed.items()})
        old = {place: AddedToken(token, special=False) for token, place in _json(folder, "added_tokens.json").items()}
        return cls(values, {place: token for place, token in old.items() if isinstance(place, int)})

    @property
    def family(self) -> str:
        """The class that transformers would use, without the "Fast" of older releases."""
        return str(self.values.get("tokenizer_class") or "").removesuffix("Fast")

    def token(self, name: str) -> str | None:
        return _content(self.values.get(name))

    def flag(self, name: str) -> bool | None:
        value = self.values.get(name)
        return value if isinstance(value, bool) else None

    def roles(self) -> Roles:
        others = self.values.get("extra_special_tokens") or self.values.get("additional_special_tokens")
        listed = [value for name, value in self.values.items() if name.endswith("_token")]
        listed += others.values() if isinstance(others, Mapping) else others if isinstance(others, list) else []
        return Roles(
            bos=self.token("bos_token"),
            eos=self.token("eos_token"),
            pad=self.token("pad_token"),
            unk=self.token("unk_token"),
            others=tuple(content for token in listed if (content := _content(token)) is not None),
            add_bos=self.flag("add_bos_token"),
            add_eos=self.flag("add_eos_token"),
        )

    def template(self, folder: Path) -> str | None:
        """The chat template: a file of its own before the config's, of several the one named "default"."""
        if (path := folder / "chat_template.jinja").is_file():
            return path.read_text("utf-8", errors="replace")
        stored = self.values.get("chat_template")
        if isinstance(stored, list):
            named = [entry for entry in stored if isinstance(entry, Mapping) and entry.get("name") == "default"]
            stored = named[0].get("template") if named else None
        return stored if isinstance(stored, str) else None

    def with_defaults(self, defaults: Mapping[str, str | None]) -> "_Config":
        """The same, where the folder leaves a token unnamed with the name that its kind of tokenizer gives it."""
        return _Config({**defaults, **self.values}, self.added)


@dataclass(frozen=True, slots=True)
class _Source:
    """What one kind of tokenizer file gives."""

    backend: tokenizers.Tokenizer
    roles: Roles
    prefix: DummyPrefix | None = None


def _load(folder: Path) -> Tokenizer:
    config = _Config.read(folder)
    for names, read in _SOURCES.items():
        if all((folder / name).is_file() for name in names):
            source = read(folder, config)
            template = config.template(folder)
            return Tokenizer(source.backend, source.roles, prefix=source.prefix, template=template)
    expected = "; or ".join(" with ".join(names) for names in _SOURCES)
    raise TokenizerError(f"{folder.name}: no tokenizer found; expected {expected}")


def _from_json(folder: Path, config: _Config) -> _Source:
    """The library's own file, which says all but the roles; it also rules over the config's add_bos_token: false."""
    try:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises no narrower type
        raise TokenizerError(
            f"tokenizer.json: expected a tokenizer that the tokenizers library reads: {error}"
        ) from error
    backend.no_padding()
    backend.no_truncation()
    roles = config.roles()
    _add_tokens(backend, config, roles)
    present = backend.post_processor
    if present is None or present.num_special_tokens_to_add(False) == 0:
        _frame(backend, roles)
    return _Source(backend, roles)


def _from_byte_pairs(folder: Path, config: _Config) -> _Source:
    """GPT-2's files, also used by RoBERTa, BART and Qwen2."""
    if "Ġ" not in _json(folder, "vocab.json"):
        raise TokenizerError("vocab.json: expected a byte-level BPE vocabulary, where a space is written Ġ")
    try:
        backend = tokenizers.Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    except Exception as error:  # the library raises no narrower type
        raise TokenizerError(f"merges.txt: expected one pair of vocab.json's tokens a line: {error}") from error
    spaced = config.flag("add_prefix_space") is True
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    backend.decoder = decoders.ByteLevel()
    if config.family == "Qwen2Tokenizer":
        words = pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=spaced, use_regex=False)
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    roles = config.with_defaults(_BYTE_PAIR_ROLES.get(config.family, _GPT2_ROLES)).roles()
    _add_tokens(backend, config, roles)
    if config.family in ("RobertaTokenizer", "BartTokenizer"):
        sep, cls = ((token, _required(backend, token)) for token in (roles.eos or "</s>", roles.bos or "<s>"))
        backend.post_processor = processors.RobertaProcessing(sep, cls, True, spaced)
    else:
        _frame(backend, roles)
    return _Source(backend, roles)


def _from_sentencepiece(folder: Path, config: _Config) -> _Source:
    """LLaMA's file: a text begins with bos unless the config says no."""
    try:
        model = SentencePieceModel.parse((folder / "tokenizer.model").read_bytes())
        model = model.renamed({place: token.content for place, token in config.added.items()})
        if config.flag("add_prefix_space") is False:
            model = model.without_prefix()
        backend = build(model)
    except Exception as error:  # the library raises no narrower type
        raise TokenizerError(f"tokenizer.model: expected a SentencePiece BPE or Unigram model: {error}") from error
    names = {f"{part}_token": model.token(part) for part in ("bos", "eos", "pad", "unk")}
    roles = config.with_defaults(names).roles()
    if roles.add_bos is None:
        roles = replace(roles, add_bos=True)
    _add_tokens(backend, config, roles)
    _frame(backend, roles)
    if not model.has_dummy_prefix:
        return _Source(backend, roles)
    controls = {token.content for token in backend.get_added_tokens_decoder().values()} - model.user_defined()
    return _Source(backend, roles, DummyPrefix.around(controls, legacy=config.flag("legacy") is not False))


_SOURCES = {
    ("tokenizer.json",): _from_json,
    ("vocab.json", "merges.txt"): _from_byte_pairs,
    ("tokenizer.model",): _from_sentencepiece,
}

_GPT2_ROLES = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
_ROBERTA_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
_BYTE_PAIR_ROLES = {
    "Qwen2Tokenizer": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "RobertaTokenizer": _ROBERTA_ROLES,
    "BartTokenizer": _ROBERTA_ROLES,
}


def _add_tokens(backend: tokenizers.Tokenizer, config: _Config, roles: Roles) -> None:
    """Give the backend the config's added tokens, and mark those special that have a role."""
    for place, token in sorted(config.added.items()):
        if token.content not in _contents(backend, special=False):
            backend.add_tokens([token])
            if backend.token_to_id(token.content) != place:
                raise TokenizerError(f"tokenizer_config.json: the added token {token.content!r} cannot have id {place}")
    special = _contents(backend, special=True)
    known = [token for token in roles.all() if backend.token_to_id(token) is not None and token not in special]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in known])


def _contents(backend: tokenizers.Tokenizer, *, special: bool) -> set[str]:
    """The added tokens the backend has, or only its special ones."""
    added = backend.get_added_tokens_decoder().values()
    return {token.content for token in added if token.special or not special}


def _frame(backend: tokenizers.Tokenizer, roles: Roles) -> None:
    """Put bos before and eos behind each text, as far as the folder asks for them."""
    before = [roles.bos] if roles.add_bos and roles.bos else []
    behind = [roles.eos] if roles.add_eos and roles.eos else []
    if not before + behind:
        return
    template = processors.TemplateProcessing(
        single=[*before, "$A", *behind],
        special_tokens=[(token, _required(backend, token)) for token in {*before, *behind}],
    )
    present = backend.post_processor
    backend.post_processor = template if present is None else processors.Sequence([present, template])


def _required(backend: tokenizers.Tokenizer, token: str) -> int:
    token_id = backend.token_to_id(token)
    if token_id is None:
        raise TokenizerError(f"tokenizer_config.json: {token!r} is to be put around texts but is no token of the model")
    return token_id


def _known(vocab: Mapping[str, int], token: str | None) -> int | None:
    return None if token is None else vocab.get(token)


def _json(folder: Path, name: str) -> dict[str, object]:
    """A JSON object of the folder; empty where the file is not there."""
    path = folder / name
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{name}: expected JSON: {error}") from error
    if not isinstance(values, dict):
        raise TokenizerError(f"{name}: expected a JSON object")
    return values


def _content(token: object) -> str | None:
    """The text of a token that is written as a string or as {"content": ...}."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def _place(place: object) -> int:
    if not str(place).isdecimal():
        raise TokenizerError(f"tokenizer_config.json: expected the ids of added tokens as numbers, not {place!r}")
    return int(str(place))


def _added_token(token: object) -> AddedToken:
    content = _content(token)
    if content is None:
        raise TokenizerError("tokenizer_config.json: expected every added token to have a content")
    flags = token if isinstance(token, Mapping) else {}
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(content, **{name: flags[name] for name in names if isinstance(flags.get(name), bool)})


def _state(decoder: decoders.Decoder | None) -> str:
    """What a decoder is made of, as the library itself writes it down."""
    return "" if decoder is None else decoder.__getstate__().decode()


def _byte_alphabet() -> dict[str, int]:
    """The letters in which byte-level BPE writes bytes: printable Latin-1 as itself, the others from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
