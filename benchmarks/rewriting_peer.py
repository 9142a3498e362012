"""Another engine's process for `rewriting.py`; runs in that engine's environment and knows nothing of ours.

Reads a line of JSON for each static batch, {"inputs": [[id, ...], ...], "max_tokens": n}, generates greedily exactly n
tokens for each, and answers {"seconds": s, "ids": [[id, ...], ...]}.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

Batch = list[list[int]]
Generate = Callable[[Batch, int], Batch]


def transformers_model(folder: Path, precision: str) -> Generate:
    """`generate` on one padded batch."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    torch.set_num_threads(2)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=getattr(torch, precision)).eval()

    def generate(inputs: Batch, max_tokens: int) -> Batch:
        longest = max(map(len, inputs))
        ids_NK = torch.tensor([ids + [0] * (longest - len(ids)) for ids in inputs])
        mask_NK = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in inputs])
        with torch.inference_mode():
            out = model.generate(
                ids_NK, attention_mask=mask_NK, max_new_tokens=max_tokens, min_new_tokens=max_tokens, do_sample=False
            )
        return [row[1:] for row in out.tolist()]

    return generate


def ctranslate2_model(folder: Path, precision: str) -> Generate:
    """`translate_batch` on one batch of a converted folder; converts it first where that was not done."""
    import ctranslate2

    converted = folder.with_name(f"{folder.name}-ctranslate2-{precision}")
    if not converted.exists():
        ctranslate2.converters.TransformersConverter(str(folder)).convert(str(converted), quantization=precision)
        config = json.loads((converted / "config.json").read_text(encoding="utf-8"))
        named = {key: "<|end|>" if value is None and key.endswith("_token") else value for key, value in config.items()}
        (converted / "config.json").write_text(json.dumps(named), encoding="utf-8")
    translator = ctranslate2.Translator(str(converted), compute_type=precision, intra_threads=2, inter_threads=1)
    vocab = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    tokens = {number: token for token, number in vocab.items()}

    def generate(inputs: Batch, max_tokens: int) -> Batch:
        results = translator.translate_batch(
            [[tokens[number] for number in ids] for ids in inputs],
            beam_size=1,
            max_decoding_length=max_tokens,
            min_decoding_length=max_tokens,
            max_input_length=0,
        )
        return [[vocab[token] for token in result.hypotheses[0]] for result in results]

    return generate


ENGINES = {"transformers": transformers_model, "ctranslate2": ctranslate2_model}


def main() -> None:
    """Serve batches until the input ends."""
    engine, folder, precision = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    generate = ENGINES[engine](folder, precision)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        started = time.perf_counter()
        ids = generate(asked["inputs"], asked["max_tokens"])
        print(json.dumps({"seconds": time.perf_counter() - started, "ids": ids}), flush=True)


if __name__ == "__main__":
    main()
