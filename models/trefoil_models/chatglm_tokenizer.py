"""What ChatGLM (`ChatGLMTokenizer`, all generations) puts beside the pieces of its SentencePiece file."""

from pathlib import Path

import tokenizers
from tokenizers import processors

MASKS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
SPEAKERS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
CHATGLM_ROLES = {"eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>", "additional_special_tokens": [*MASKS]}
TELLING_FILES = ("tokenizer_config.json", "config.json", "added_tokens.json", "tokenization_chatglm.py")
"""What may tell ChatGLM 3 from ChatGLM 2: their configs differ in nothing that counts."""
SIGNS = ("<|user|>", "chatglm3")


FIRST_ROLES = {
    **{"bos_token": "<sop>", "eos_token": "<eop>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "[MASK]"},
    "gmask_token": "[gMASK]",
}
"""ChatGLM-6B's."""
IMAGE_TOKENS = 20_000
LONGEST_BLANK = 80
SPELLED = {
    "\n": "<n>",
    "\t": "<|tab|>",
    **{" " * length: f"<|blank_{length}|>" for length in range(LONGEST_BLANK, 1, -1)},
}
"""What ChatGLM-6B writes white space as; the longest run of blanks first."""


def special_tokens(folder: Path) -> tuple[str, ...]:
    """In the order of their ids; those of speakers where any file of the folder shows ChatGLM 3."""
    texts = (
        (folder / name).read_text("utf-8", errors="replace") for name in TELLING_FILES if (folder / name).is_file()
    )
    return (*MASKS, *SPEAKERS) if any(sign in text for text in texts for sign in SIGNS) else MASKS


def frame(backend: tokenizers.Tokenizer, *parts: str) -> None:
    """Put the tokens that every prompt has around its text, `$A`."""
    ids = [(name, token_id) for name in parts if (token_id := backend.token_to_id(name)) is not None]
    first = processors.TemplateProcessing(single=list(parts), special_tokens=ids)
    present = backend.post_processor
    backend.post_processor = first if present is None else processors.Sequence([present, first])
