"""A model folder of shapes.py as a GGUF file, by llama.cpp's own converter.

    python benchmarks/gguf.py CONVERTER_FOLDER MODEL_FOLDER OUT.gguf

The converter knows published tokenizers by a hash and refuses ours; what it would ask of them is answered here.
"""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

NORMAL, CONTROL = 1, 3
"""Kinds of tokens in GGUF."""


def vocabulary(folder: Path) -> tuple[list[str], list[int], str]:
    """Tokens in the order of their ids, their kinds, and how text is cut before they are looked for."""
    stored: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = sorted(stored["model"]["vocab"], key=stored["model"]["vocab"].__getitem__)
    special = {token["content"] for token in stored["added_tokens"]}
    return tokens, [CONTROL if token in special else NORMAL for token in tokens], "gpt-2"


def with_merge(vocab: Any) -> Any:
    """Ours has no merges, and llama.cpp loads no vocabulary without one."""
    vocab.merges = vocab.merges or ["a b"]
    return vocab


def main() -> None:
    """Convert one folder, weights in bfloat16."""
    converter, folder, out = map(Path, sys.argv[1:])
    sys.path[:0] = [str(converter), str(converter / "gguf-py")]
    from conversion.base import TextModel  # llama.cpp's, from the folder just named
    from gguf.vocab import SpecialVocab

    TextModel.get_vocab_base = lambda model: vocabulary(folder)
    add_to_file = SpecialVocab.add_to_gguf
    SpecialVocab.add_to_gguf = lambda vocab, *rest: add_to_file(with_merge(vocab), *rest)
    sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outtype", "bf16", "--outfile", str(out)]
    runpy.run_path(str(converter / "convert_hf_to_gguf.py"), run_name="__main__")


if __name__ == "__main__":
    main()
