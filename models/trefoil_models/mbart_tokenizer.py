"""mBART's and mBART-50's sentencepiece.bpe.model into the library's tokenizer (Liu et al., arXiv 2001.08210).

XLM-RoBERTa's numbering with the codes of the languages between the pieces and the mask. mBART puts eos and the code
behind a text, mBART-50 the code before it and eos behind.
"""

import tokenizers
from tokenizers import AddedToken, processors

from trefoil_models.encoder_tokenizers import xlm_roberta
from trefoil_models.sentencepiece_model import SentencePieceModel

FIRST_CODES = """
    ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP
    nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN
"""
"""In the order of their ids."""
MORE_CODES = """
    af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE sw_KE
    ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI
"""
"""What mBART-50 has behind those."""
DEFAULT_CODE = "en_XX"


def mbart(model: SentencePieceModel) -> tokenizers.Tokenizer:
    """The 25 languages of mBART."""
    return _coded(model, FIRST_CODES.split())


def mbart_50(model: SentencePieceModel) -> tokenizers.Tokenizer:
    """The 52 languages of mBART-50."""
    return _coded(model, [*FIRST_CODES.split(), *MORE_CODES.split()])


def frame_behind(backend: tokenizers.Tokenizer, code: tuple[str, int], eos: tuple[str, int]) -> None:
    """`A eos code`."""
    _frame(backend, [], [eos, code])


def frame_before(backend: tokenizers.Tokenizer, code: tuple[str, int], eos: tuple[str, int]) -> None:
    """`code A eos`."""
    _frame(backend, [code], [eos])


def _coded(model: SentencePieceModel, codes: list[str]) -> tokenizers.Tokenizer:
    backend = xlm_roberta(model, languages=codes)
    backend.add_special_tokens([AddedToken(code, normalized=False, special=True) for code in codes])
    return backend


def _frame(backend: tokenizers.Tokenizer, before: list[tuple[str, int]], behind: list[tuple[str, int]]) -> None:
    left, right = ([token for token, _ in own] for own in (before, behind))
    backend.post_processor = processors.TemplateProcessing(
        single=[*left, "$A", *right], pair=[*left, "$A", "$B", *right], special_tokens=[*before, *behind]
    )
