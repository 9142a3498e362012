"""CTranslate2: `translate_batch` on one batch of a converted folder; converts it first where that was not done."""

import json
from pathlib import Path

import ctranslate2
import worker


def load(folder: Path, precision: str) -> worker.Generate:
    translator = ctranslate2.Translator(
        str(converted(folder, precision)), compute_type=precision, intra_threads=worker.THREADS, inter_threads=1
    )
    vocab = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    tokens = {number: token for token, number in vocab.items()}

    def generate(inputs: worker.Batch, max_tokens: int) -> worker.Batch:
        results = translator.translate_batch(
            [[tokens[number] for number in ids] for ids in inputs],
            beam_size=1,
            max_decoding_length=max_tokens,
            min_decoding_length=max_tokens,
            max_input_length=0,
        )
        return [[vocab[token] for token in result.hypotheses[0]] for result in results]

    return generate


def converted(folder: Path, precision: str) -> Path:
    """The folder in its own format, made on first use beside it."""
    path = folder.with_name(f"{folder.name}-ctranslate2-{precision}")
    if not path.exists():
        ctranslate2.converters.TransformersConverter(str(folder)).convert(str(path), quantization=precision)
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        named = {key: "<|end|>" if value is None and key.endswith("_token") else value for key, value in config.items()}
        (path / "config.json").write_text(json.dumps(named), encoding="utf-8")
    return path


if __name__ == "__main__":
    worker.serve(load)
