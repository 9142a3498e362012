"""A tiny file of ranks as Qwen 1 and GLM-4 have them, and tiktoken's own reading of it."""

from base64 import b64encode
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from trefoil_models.tiktoken_file import ONE_DIGIT_WORDS
from trefoil_models.tokenizer_files import QWEN_SPECIALS

tiktoken = pytest.importorskip("tiktoken")

TEXTS = [
    "",
    "The quick brown fox, 12345 times; don't WE'LL see?!\n\n  indented\r\nline",
    "今天天气很好。你好，世界！😀👩‍👩‍👧",
    "nai\u0308ve cafe\u0301 ｆｕｌｌ",
    "abab ababa aaaaaaa babab",
    "   three spaces\tand a tab ",
    "<|im_start|>user\nhi<|im_end|>\n",
]


def learn_ranks(num_merges: int = 120) -> dict[bytes, int]:
    """Byte pairs joined by how often they come in the texts, and two words that no pairs of tokens lead to."""
    parts = [[bytes([byte]) for byte in line.encode()] for line in TEXTS * 2]
    ranks = {bytes([byte]): 255 - byte for byte in range(256)}
    for _ in range(num_merges):
        pairs = Counter(pair for line in parts for pair in pairwise(line))
        (left, right), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
        ranks.setdefault(left + right, len(ranks))
        parts = [_joined(line, left, right) for line in parts]
    for word in (b" zebra", b"qwertz"):
        ranks[word] = len(ranks)
    return ranks


def _joined(line: list[bytes], left: bytes, right: bytes) -> list[bytes]:
    out: list[bytes] = []
    for part in line:
        if out and out[-1] == left and part == right:
            out[-1] += part
        else:
            out.append(part)
    return out


RANKS = learn_ranks()
QWEN = tiktoken.Encoding(
    "qwen",
    pat_str=ONE_DIGIT_WORDS,
    mergeable_ranks=RANKS,
    special_tokens={token: len(RANKS) + i for i, token in enumerate(QWEN_SPECIALS)},
)


def write_ranks(path: Path, ranks: dict[bytes, int] = RANKS) -> Path:
    path.write_text("".join(f"{b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    return path.parent
