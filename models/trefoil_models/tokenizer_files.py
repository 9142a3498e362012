"""A folder's tokenizer files, whichever kind it has, into the parts of a `Tokenizer`; imports no torch.

Reads `tokenizer.json`, or `vocab.json` with `merges.txt`, or `vocab.txt`, or a SentencePiece model: LLaMA's
`tokenizer.model`, T5's or ALBERT's `spiece.model`, XLM-RoBERTa's or mBART's `sentencepiece.bpe.model`; or a tiktoken
file: Qwen 1's `qwen.tiktoken`, GLM-4's `tokenizer.model`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from trefoil_models import tiktoken_file
from trefoil_models.chatglm_tokenizer import CHATGLM_ROLES, FIRST_ROLES, IMAGE_TOKENS, SPELLED, frame, special_tokens
from trefoil_models.encoder_tokenizers import (
    ALBERT_ROLES,
    ANGLE_ROLES,
    SQUARE_ROLES,
    albert,
    frame_doubled,
    frame_typed,
    word_pieces,
    xlm_roberta,
)
from trefoil_models.mbart_tokenizer import DEFAULT_CODE, frame_before, frame_behind, mbart, mbart_50
from trefoil_models.sentencepiece_model import DummyPrefix, SentencePieceModel, build

QWEN_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
GLM_4_SPECIALS = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
)
WORD_END = "</w>"
MOST_SENTINELS = 10_000
NO_LIMIT = 1_000_000_000
_Frame = Callable[[tokenizers.Tokenizer, tuple[str, int], tuple[str, int]], None]


class TokenizerError(ValueError):
    """A model folder whose tokenizer files are missing or damaged."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The tokens with a part to play, by name, and what the tokenizer puts around each text."""

    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    unk: str | None = None
    mask: str | None = None
    cls: str | None = None
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


@dataclass(frozen=True, slots=True)
class Parts:
    """What a folder's files give: the library's tokenizer, the tokens with a part to play, prefix and chat template.

    `names_tokens`: whether the spelling of a special token within a text is that token.
    """

    backend: tokenizers.Tokenizer
    roles: Roles
    prefix: DummyPrefix | None = None
    template: str | None = None
    names_tokens: bool = True
    longest: int | None = None


@dataclass(frozen=True, slots=True)
class _Config:
    """tokenizer_config.json with the older files beside it, and what they say about single tokens."""

    values: Mapping[str, object]
    added: Mapping[int, AddedToken] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "_Config":
        stated = {"tokenizer_class": _CLASSES.get(str(read_object(folder, "config.json").get("model_type")))}
        values = {
            **stated,
            **read_object(folder, "special_tokens_map.json"),
            **read_object(folder, "tokenizer_config.json"),
        }
        listed = values.get("added_tokens_decoder")
        if isinstance(listed, Mapping):
            return cls(values, {_place(place): _added_token(token) for place, token in listed.items()})
        old = {
            place: AddedToken(token, special=False) for token, place in read_object(folder, "added_tokens.json").items()
        }
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

    @property
    def longest(self) -> int | None:
        """Most tokens of a text; libraries write a huge number where they know of none."""
        value = self.values.get("model_max_length")
        return int(value) if isinstance(value, int | float) and 0 < value < NO_LIMIT else None

    def roles(self) -> Roles:
        others = self.values.get("extra_special_tokens") or self.values.get("additional_special_tokens")
        listed = [value for name, value in self.values.items() if name.endswith("_token")]
        listed += others.values() if isinstance(others, Mapping) else others if isinstance(others, list) else []
        return Roles(
            bos=self.token("bos_token"),
            eos=self.token("eos_token"),
            pad=self.token("pad_token"),
            unk=self.token("unk_token"),
            mask=self.token("mask_token"),
            cls=self.token("cls_token"),
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

    def with_defaults(self, defaults: Mapping[str, object]) -> "_Config":
        """The same, where the folder leaves a token unnamed with the name that its kind of tokenizer gives it."""
        return _Config({**defaults, **self.values}, self.added)


def read_parts(folder: Path) -> Parts:
    """The parts of a folder's tokenizer. Raises TokenizerError where there is none that can be read."""
    config = _Config.read(folder)
    for names, read in _SOURCES.items():
        if all((folder / name).is_file() for name in names):
            return replace(read(folder, config), template=config.template(folder), longest=config.longest)
    expected = "; or ".join(" with ".join(names) for names in _SOURCES)
    raise TokenizerError(f"{folder.name}: no tokenizer found; expected {expected}")


def _from_json(folder: Path, config: _Config) -> Parts:
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
    return Parts(backend, roles)


def _from_byte_pairs(folder: Path, config: _Config) -> Parts:
    """GPT-2's files, also used by RoBERTa, BART and Qwen2; or GPT-1's of the same names, which mark where words end."""
    vocab = read_object(folder, "vocab.json")
    if any(token.endswith(WORD_END) for token in vocab):
        return _from_word_ends(folder, config)
    if "Ġ" not in vocab:
        raise TokenizerError("vocab.json: expected a byte-level BPE vocabulary, where a space is written Ġ")
    backend = tokenizers.Tokenizer(_pairs(folder))
    spaced = config.flag("add_prefix_space") is True
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    backend.decoder = decoders.ByteLevel()
    if config.family == "Qwen2Tokenizer":
        words = pre_tokenizers.Split(Regex(tiktoken_file.ONE_DIGIT_WORDS), "isolated")
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
    return Parts(backend, roles)


def _from_word_ends(folder: Path, config: _Config) -> Parts:
    """GPT-1's files: text is lower-cased and cut as BERT cuts it."""
    config = config.with_defaults({"unk_token": "<unk>"})
    backend = tokenizers.Tokenizer(_pairs(folder, unk_token=config.token("unk_token"), end_of_word_suffix=WORD_END))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix=WORD_END)
    roles = config.roles()
    _add_tokens(backend, config, roles)
    _frame(backend, roles)
    return Parts(backend, roles)


def _pairs(folder: Path, **options: str | None) -> models.BPE:
    """The vocabulary and its merges."""
    try:
        return models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"), **options)
    except Exception as error:  # the library raises no narrower type
        raise TokenizerError(f"merges.txt: expected one pair of vocab.json's tokens a line: {error}") from error


def _from_model(folder: Path, config: _Config) -> Parts:
    """LLaMA's file, with bos before a text unless the config says no; or ChatGLM's; or GLM-4's, which is text."""
    path = folder / "tokenizer.model"
    if path.read_bytes().isascii():
        parts = _tiktoken(path, config, words=tiktoken_file.THREE_DIGIT_WORDS, specials=GLM_4_SPECIALS)
        frame(parts.backend, "[gMASK]", "<sop>", "$A")
        return parts
    if config.family == "ChatGLMTokenizer":
        return _from_chatglm(folder, config)
    return _sentencepiece(_parsed(path), config, adds_bos=True)


def _from_chatglm(folder: Path, config: _Config) -> Parts:
    """ChatGLM2's and 3's file: the special tokens follow its pieces."""
    model = _parsed(folder / "tokenizer.model").extended(special_tokens(folder))
    parts = _sentencepiece(model, config.with_defaults(CHATGLM_ROLES), adds_bos=False)
    frame(parts.backend, "[gMASK]", "sop", "$A")
    return replace(parts, names_tokens=False)


def _from_qwen(folder: Path, config: _Config) -> Parts:
    """Qwen 1's file."""
    return _tiktoken(
        folder / "qwen.tiktoken",
        config,
        words=tiktoken_file.ONE_DIGIT_WORDS,
        specials=QWEN_SPECIALS,
        normalizer=normalizers.NFC(),
    )


def _tiktoken(
    path: Path,
    config: _Config,
    *,
    words: str,
    specials: Sequence[str],
    normalizer: normalizers.Normalizer | None = None,
) -> Parts:
    """The tokenizer of ranks; `specials` follow them where the config lists no tokens of its own."""
    try:
        ranks = tiktoken_file.read_ranks(path.read_bytes())
        specials = () if config.added else specials
        backend = tiktoken_file.build(ranks, words=words, specials=specials, normalizer=normalizer)
    except Exception as error:  # base64, numbers and the library each raise their own
        raise TokenizerError(f"{path.name}: expected a tiktoken file: {error}") from error
    end = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    roles = config.with_defaults(end).roles()
    _add_tokens(backend, config, roles)
    return Parts(backend, roles)


def _from_word_pieces(folder: Path, config: _Config) -> Parts:
    """BERT's file."""
    config = config.with_defaults(SQUARE_ROLES)
    try:
        backend = word_pieces(
            folder / "vocab.txt",
            lowercase=config.flag("do_lower_case") is not False,
            strip_accents=config.flag("strip_accents"),
            splits_chinese=config.flag("tokenize_chinese_chars") is not False,
            unk=config.token("unk_token") or "[UNK]",
        )
    except Exception as error:  # the library raises no narrower type
        raise TokenizerError(f"vocab.txt: expected a WordPiece vocabulary, one piece a line: {error}") from error
    return _framed(backend, config, frame_typed)


def _from_spiece(folder: Path, config: _Config) -> Parts:
    """T5's file, or ALBERT's of the same name."""
    if config.family != "AlbertTokenizer":
        return _from_t5(folder, config)
    backend = albert(
        _parsed(folder / "spiece.model"),
        lowercase=config.flag("do_lower_case") is not False,
        keeps_accents=config.flag("keep_accents") is True,
    )
    return _framed(backend, config.with_defaults(ALBERT_ROLES), frame_typed)


def _from_sentencepiece_bpe(folder: Path, config: _Config) -> Parts:
    """XLM-RoBERTa's file, or mBART's of the same name."""
    if config.family in _MBART:
        return _from_mbart(folder, config)
    backend = xlm_roberta(_parsed(folder / "sentencepiece.bpe.model"))
    return _framed(backend, config.with_defaults(ANGLE_ROLES), frame_doubled)


def _from_mbart(folder: Path, config: _Config) -> Parts:
    """With the code of the language that the folder reads by default."""
    build_from, frame = _MBART[config.family]
    backend, config = build_from(_parsed(folder / "sentencepiece.bpe.model")), config.with_defaults(ANGLE_ROLES)
    roles = config.roles()
    _add_tokens(backend, config, roles)
    code, eos = str(config.values.get("src_lang") or DEFAULT_CODE), roles.eos or "</s>"
    frame(backend, (code, _required(backend, code)), (eos, _required(backend, eos)))
    return Parts(backend, roles)


def _framed(backend: tokenizers.Tokenizer, config: _Config, frame: _Frame) -> Parts:
    """With its roles, and the tokens that stand around each text."""
    roles = config.roles()
    _add_tokens(backend, config, roles)
    cls, sep = (token for token in (config.token("cls_token"), config.token("sep_token")) if token is not None)
    frame(backend, (cls, _required(backend, cls)), (sep, _required(backend, sep)))
    return Parts(backend, roles)


def _from_t5(folder: Path, config: _Config) -> Parts:
    """T5's file: eos behind each text, sentinels behind the pieces, the first of them last; mT5 has them inside."""
    model = _parsed(folder / "spiece.model").trimming_between()  # as sentinels are special tokens
    count = config.values.get("extra_ids", 100)
    if not isinstance(count, int) or not 0 <= count <= MOST_SENTINELS:
        raise TokenizerError(f"tokenizer_config.json: extra_ids must be from 0 to {MOST_SENTINELS}, not {count!r}")
    if sentinel(0) not in {piece.text for piece in model.pieces}:
        model = model.extended(sentinel(number) for number in reversed(range(count)))
    return _sentencepiece(model, config.with_defaults({"add_eos_token": True}), adds_bos=False)


def sentinel(number: int) -> str:
    """The token that stands for a gap in a text, by T5's name for it."""
    return f"<extra_id_{number}>"


def _parsed(path: Path) -> SentencePieceModel:
    try:
        return SentencePieceModel.parse(path.read_bytes())
    except Exception as error:  # damage shows as whatever it first runs into
        raise TokenizerError(f"{path.name}: expected a SentencePiece BPE or Unigram model: {error}") from error


def _from_ice_text(folder: Path, config: _Config) -> Parts:
    """ChatGLM-6B's file; in the first release its pieces follow those of images. A prompt ends where answers start."""
    count = config.values.get("num_image_tokens", IMAGE_TOKENS)
    if not isinstance(count, int) or not 0 <= count <= IMAGE_TOKENS:
        raise TokenizerError(f"tokenizer_config.json: num_image_tokens must be from 0 to {IMAGE_TOKENS}, not {count!r}")
    model = _parsed(folder / "ice_text.model").shifted(f"<image_{number}>" for number in range(count))
    parts = _sentencepiece(model, config.with_defaults(FIRST_ROLES), adds_bos=False, spelled=SPELLED)
    frame(parts.backend, "$A", _known(parts.backend, "[gMASK]"), _known(parts.backend, "<sop>"))
    return parts


def _known(backend: tokenizers.Tokenizer, token: str) -> str:
    _required(backend, token)
    return token


def _sentencepiece(
    model: SentencePieceModel, config: _Config, *, adds_bos: bool, spelled: Mapping[str, str] | None = None
) -> Parts:
    """The tokenizer of a parsed file; `adds_bos` where the config does not say."""
    model = model.renamed({place: token.content for place, token in config.added.items()})
    if config.flag("add_prefix_space") is False:
        model = model.without_prefix()
    try:
        backend = build(model, spelled)
    except Exception as error:  # the library raises no narrower type
        raise TokenizerError(f"expected a SentencePiece BPE or Unigram model: {error}") from error
    names = {f"{part}_token": model.token(part) for part in ("bos", "eos", "pad", "unk")}
    roles = config.with_defaults(names).roles()
    if roles.add_bos is None:
        roles = replace(roles, add_bos=adds_bos)
    _add_tokens(backend, config, roles)
    _frame(backend, roles)
    if not model.has_dummy_prefix:
        return Parts(backend, roles)
    controls = {token.content for token in backend.get_added_tokens_decoder().values()} - model.user_defined()
    return Parts(backend, roles, DummyPrefix.around(controls, legacy=config.flag("legacy") is not False))


_SOURCES = {
    ("tokenizer.json",): _from_json,
    ("vocab.json", "merges.txt"): _from_byte_pairs,
    ("qwen.tiktoken",): _from_qwen,
    ("tokenizer.model",): _from_model,
    ("ice_text.model",): _from_ice_text,
    ("spiece.model",): _from_spiece,
    ("sentencepiece.bpe.model",): _from_sentencepiece_bpe,
    ("vocab.txt",): _from_word_pieces,
}

_CLASSES = {
    "roberta": "RobertaTokenizer",
    "bart": "BartTokenizer",
    "mbart": "MBartTokenizer",
    "albert": "AlbertTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "chatglm": "ChatGLMTokenizer",
}
"""The tokenizer of a model_type, where tokenizer_config.json does not name it and the files do not tell."""

_MBART = {"MBartTokenizer": (mbart, frame_behind), "MBart50Tokenizer": (mbart_50, frame_before)}
_GPT2_ROLES = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
_BYTE_PAIR_ROLES = {
    "Qwen2Tokenizer": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "RobertaTokenizer": ANGLE_ROLES,
    "BartTokenizer": ANGLE_ROLES,
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


def read_object(folder: Path, name: str) -> dict[str, object]:
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
