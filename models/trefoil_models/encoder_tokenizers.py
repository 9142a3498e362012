"""Encoders' own vocabulary files into the library's tokenizers: vocab.txt, ALBERT's and XLM-RoBERTa's SentencePiece.

Roles and added tokens are `tokenizer_files`' business.
"""

from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from trefoil_models.sentencepiece_model import SentencePieceModel

SQUARE_ROLES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
ALBERT_ROLES = {
    **SQUARE_ROLES,
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}
ANGLE_ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
FAIRSEQ = (("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0))
"""XLM-RoBERTa puts these in place of SentencePiece's first three pieces."""


def word_pieces(
    file: Path, *, lowercase: bool, strip_accents: bool | None, splits_chinese: bool, unk: str
) -> tokenizers.Tokenizer:
    """BERT's vocab.txt. Raises Exception, as the library does, where it is none."""
    backend = tokenizers.Tokenizer(models.WordPiece.from_file(str(file), unk_token=unk))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=splits_chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def albert(model: SentencePieceModel, *, lowercase: bool, keeps_accents: bool) -> tokenizers.Tokenizer:
    """ALBERT's spiece.model, behind its own way to lower-case and to strip accents."""
    backend = tokenizers.Tokenizer(models.Unigram(_vocabulary(model), model.ids["unk"], byte_fallback=False))
    steps: list[normalizers.Normalizer] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not keeps_accents:
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if lowercase:
        steps.append(normalizers.Lowercase())
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    backend.normalizer = normalizers.Sequence(steps)
    return _with_metaspace(backend)


def xlm_roberta(model: SentencePieceModel, *, languages: Iterable[str] = ()) -> tokenizers.Tokenizer:
    """XLM-RoBERTa's sentencepiece.bpe.model: fairseq's tokens first, the pieces one place later, the mask last.

    mBART has the codes of its languages before the mask.
    """
    vocabulary = [*FAIRSEQ, *_vocabulary(model)[3:], *((code, 0.0) for code in languages), ("<mask>", 0.0)]
    backend = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=False))
    if model.charsmap:
        backend.normalizer = normalizers.Precompiled(model.charsmap)
    return _with_metaspace(backend)


def frame_typed(backend: tokenizers.Tokenizer, cls: tuple[str, int], sep: tuple[str, int]) -> None:
    """`cls A sep B sep`, the second text of type 1."""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls[0]}:0 $A:0 {sep[0]}:0",
        pair=f"{cls[0]}:0 $A:0 {sep[0]}:0 $B:1 {sep[0]}:1",
        special_tokens=[cls, sep],
    )


def frame_doubled(backend: tokenizers.Tokenizer, cls: tuple[str, int], sep: tuple[str, int]) -> None:
    """`cls A sep sep B sep`, all of type 0."""
    backend.post_processor = processors.TemplateProcessing(
        single=[cls[0], "$A", sep[0]],
        pair=[cls[0], "$A", sep[0], sep[0], "$B", sep[0]],
        special_tokens=[cls, sep],
    )


def _with_metaspace(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Words are told by the mark before them, the first one too."""
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    return backend


def _vocabulary(model: SentencePieceModel) -> list[tuple[str, float]]:
    return [(piece.text, piece.score) for piece in model.pieces]
