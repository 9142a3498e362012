"""What ChatGLM 2 and 3 (`ChatGLMTokenizer`) put beside the pieces of their SentencePiece file."""

from pathlib import Path

import tokenizers
from tokenizers import processors

MASKS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
SPEAKERS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
CHATGLM_ROLES = {"eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>", "additional_special_tokens": [*MASKS]}
TELLING_FILES = ("tokenizer_config.json", "config.json", "added_tokens.json", "tokenization_chatglm.py")
"""What may tell ChatGLM 3 from ChatGLM 2: their configs differ in nothing that counts."""
SIGNS = ("<|user|>", "chatglm3")


def special_tokens(folder: Path) -> tuple[str, ...]:
    """In the order of their ids; those of speakers where any file of the folder shows ChatGLM 3."""
    texts = (
        (folder / name).read_text("utf-8", errors="replace") for name in TELLING_FILES if (folder / name).is_file()
    )
    return (*MASKS, *SPEAKERS) if any(sign in text for text in texts for sign in SIGNS) else MASKS


def frame(backend: tokenizers.Tokenizer, *before: str) -> None:
    """Put the tokens that every prompt begins with before each text."""
    ids = [(token, backend.token_to_id(token)) for token in before]
    first = processors.TemplateProcessing(single=[*before, "$A"], special_tokens=ids)
    present = backend.post_processor
    backend.post_processor = first if present is None else processors.Sequence([present, first])
