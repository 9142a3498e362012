"""Trains a demo encoder-decoder from nothing: `python -m trefoil_demo.encoder_decoder --out DIR`.

Not good enough to be bundled yet: docs/measurements.md has its figures. A SentencePiece tokenizer, span-corruption
pre-training on the world's text, then text-to-text tasks by prefix; at the end the held-out examples.
"""

import argparse
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, cast

import sentencepiece
import torch
from torch import nn

from trefoil.training.data import Reading
from trefoil.training.examples import Example
from trefoil.training.loop import Progress, Recipe, Watch, train
from trefoil.training.objectives.causal_lm import causal_lm
from trefoil.training.objectives.span_corruption import corrupted
from trefoil_demo import rewriting, understanding
from trefoil_demo.encoder_decoder_card import encoder_decoder_card
from trefoil_demo.facts import facts
from trefoil_demo.stories import NAMES, TRAITS
from trefoil_demo.understanding import Verdict
from trefoil_models import checkpoint
from trefoil_models.attend import packed_pairs
from trefoil_models.checkpoint import EncoderDecoder
from trefoil_models.tokenizer import Tokenizer

SEED = 7
NUM_THREADS = 1
"""Sums in floating point depend on how many threads share them: the same number gives the same weights."""
NUM_DOCUMENTS = 8_000
NUM_REWRITES = 70_000
NUM_SAMPLES = 8_000
"""Texts of each kind that the tokenizer is trained on."""
NUM_SENTINELS = 16
LONGEST = 256
LONGEST_ANSWER = 40
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2

CONFIG: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": 2000,
    "d_model": 128,
    "d_kv": 32,
    "num_heads": 4,
    "d_ff": 384,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "n_positions": LONGEST,
    "tie_word_embeddings": True,
    "scale_decoder_outputs": False,
    "pad_token_id": PAD_ID,
    "eos_token_id": EOS_ID,
    "decoder_start_token_id": PAD_ID,
    "task_specific_params": {
        "summarization": {"prefix": rewriting.SUMMARIZE},
        "translation_en_to_zh": {"prefix": rewriting.TRANSLATE[0]},
        "translation_zh_to_en": {"prefix": rewriting.TRANSLATE[1]},
    },
}
PRETRAIN = Recipe(
    learning_rate=1.5e-3, budget=768, final_rate=0.6, weight_decay=0.01, report_every=50, checkpoint_every=100
)
TUNE = Recipe(
    learning_rate=1.5e-3, budget=768, final_rate=0.02, weight_decay=0.01, report_every=50, checkpoint_every=100
)


def main() -> None:
    """Train, save, ask what was held out, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model; existing files are replaced")
    parser.add_argument("--work", type=Path, help="keep checkpoints here, and go on from those that are there")
    options = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    started = time.monotonic()
    tokenizer = train_tokenizer(options.out)
    model = train_model(tokenizer, options.work)
    save(model, options.out, tokenizer)
    verdicts = judge(options.out)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    card = encoder_decoder_card(num_parameters, verdicts)
    (options.out / "README.md").write_text(card, encoding="utf-8")
    print(understanding.table(verdicts), f"{(time.monotonic() - started) / 60:.1f} minutes", sep="\n")


def train_tokenizer(out: Path) -> Tokenizer:
    """SentencePiece BPE on the world's text, a folder's spiece.model.

    One token at most is a word, a Chinese character, or a name in Chinese: what is to be copied is then one token.
    """
    texts = list(rewriting.documents(Random(SEED), NUM_SAMPLES))
    for rewrite in rewriting.training_rewrites(Random(SEED + 1), NUM_SAMPLES):
        texts += [rewrite.source.replace("<extra_id_0>", ""), rewrite.target.replace("<extra_id_0>", "")]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        model_type="bpe",
        vocab_size=CONFIG["vocab_size"],
        user_defined_symbols=sorted(_chinese_words() | {c for text in texts for c in text if _is_chinese(c)}),
        normalization_rule_name="identity",
        byte_fallback=True,
        character_coverage=1.0,
        pad_id=PAD_ID,
        eos_id=EOS_ID,
        unk_id=UNK_ID,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "spiece.model").write_bytes(written.getvalue())
    about = {
        "tokenizer_class": "T5Tokenizer",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "extra_ids": NUM_SENTINELS,
        "legacy": False,
        "model_max_length": LONGEST,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return Tokenizer.load(out)


def _chinese_words() -> set[str]:
    told = (value for trait in TRAITS.values() for value in trait.values)
    names = {words[1] for words in (*told, *(name for name, _ in NAMES))}
    known = {word for fact in facts() for word in fact.slots["zh"].values()}
    return {word for word in names | known if not word.isdigit()}


def _is_chinese(character: str) -> bool:
    return "\u4e00" <= character <= "\u9fff"


def train_model(tokenizer: Tokenizer, work: Path | None) -> EncoderDecoder:
    """Pre-train on texts with gaps, then tune on the tasks."""
    config = {**CONFIG, "vocab_size": tokenizer.vocab_len}
    model = cast(EncoderDecoder, checkpoint.build(config, seed=SEED, std_of=std_of))
    rng = Random(SEED + 2)
    texts = rewriting.documents(Random(SEED + 3), NUM_DOCUMENTS)
    gapped = [_with_gaps(tokenizer.encode_ids(text, add_special_tokens=False), rng, tokenizer) for text in texts]
    _train("text", model, gapped, PRETRAIN, work)
    reading = Reading(tokenizer, (EOS_ID,), longest=LONGEST, start_id=PAD_ID)
    rewrites = rewriting.training_rewrites(Random(SEED + 4), NUM_REWRITES)
    _train("tasks", model, [reading.pair(one.source, one.target) for one in rewrites], TUNE, work)
    return model


def std_of(name: str, weight: nn.Parameter) -> float:
    """Wide where T5 needs wide weights, for AdamW's steps are as small there as anywhere.

    With T5's own narrow tables of distances the model learns for long without looking at places; its wide embedding
    stays for long as it was drawn.
    """
    if "relative_attention_bias" in name:
        return 2.0
    if name == "shared.weight":
        return 0.3
    inputs = float(weight.shape[1])
    if name.endswith((".q.weight", ".k.weight")):
        return inputs**-0.5 * CONFIG["d_kv"] ** -0.25  # scores of about 1, as there is no scale
    return inputs**-0.5 * (0.3 if name.endswith((".o.weight", ".wo.weight")) else 1.0)


def _with_gaps(ids: Sequence[int], rng: Random, tokenizer: Tokenizer) -> Example:
    return corrupted(
        ids, rng, sentinels=tokenizer.sentinel_ids, start_id=PAD_ID, eos_id=EOS_ID, density=0.25, span_len=2.0
    )


def _train(name: str, model: EncoderDecoder, examples: list[Example], recipe: Recipe, work: Path | None) -> None:
    started = time.monotonic()

    def report(progress: Progress) -> None:
        seconds = time.monotonic() - started
        print(f"{name} {progress.step}/{progress.num_steps} loss={progress.loss:.4f} seconds={seconds:.0f}", flush=True)

    train(model, causal_lm, examples, recipe, watch=Watch(report=report), folder=work and work / name)


def save(model: EncoderDecoder, out: Path, tokenizer: Tokenizer) -> None:
    """In bfloat16, which halves the bytes; what the test measures is what was saved."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    checkpoint.save(model, out, {**CONFIG, "vocab_size": tokenizer.vocab_len})
    generation = {"decoder_start_token_id": PAD_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def judge(out: Path) -> list[Verdict]:
    """The held-out test of the saved folder, computed in float32 without a server."""
    model, tokenizer = cast(EncoderDecoder, checkpoint.load(out)), Tokenizer.load(out)
    return rewriting.judge(lambda sources: greedy(model, tokenizer, sources))


@torch.no_grad()
def greedy(model: EncoderDecoder, tokenizer: Tokenizer, sources: Sequence[str]) -> list[str]:
    """Answers to all texts side by side, each token from a whole forward pass; sentinels are left in."""
    read = [tokenizer.encode_ids(source) for source in sources]
    said: list[list[int]] = [[PAD_ID] for _ in read]
    for _ in range(LONGEST_ANSWER):
        going = [n for n, ids in enumerate(said) if ids[-1] != EOS_ID]
        if not going:
            break
        pairs = packed_pairs([read[n] for n in going], [said[n] for n in going])
        model.encode(pairs.encoder_rows, pairs.here, pairs.there)
        last = torch.tensor([len(said[n]) for n in going]).cumsum(0) - 1
        picked = model.lm_head.logits(model(pairs.rows, pairs.there)[last]).argmax(-1).tolist()
        for n, token_id in zip(going, picked, strict=True):
            said[n].append(token_id)
    kept = ([i for i in ids if i not in (PAD_ID, EOS_ID)] for ids in said)
    return [tokenizer.decode(ids, skip_special_tokens=False).strip() for ids in kept]


if __name__ == "__main__":
    main()
