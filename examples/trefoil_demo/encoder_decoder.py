"""Trains the demo encoder-decoder from nothing: `python -m trefoil_demo.encoder_decoder --out DIR --device cuda`.

A SentencePiece tokenizer, then for the given minutes first span corruption of the world's text and then text-to-text
tasks by prefix; at the end the held-out examples. Two minutes go by before and after the training.
"""

import argparse
import copy
import io
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from random import Random
from typing import Any, cast

import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trefoil.training.data import Reader
from trefoil.training.examples import Example
from trefoil.training.loop import DivergedError, Recipe, adamw
from trefoil.training.objectives.span_corruption import corrupted
from trefoil_demo import padded, rewriting, understanding
from trefoil_demo.encoder_decoder_card import Training, encoder_decoder_card
from trefoil_demo.facts import facts
from trefoil_demo.padded import Table
from trefoil_demo.stories import NAMES, TRAITS
from trefoil_demo.understanding import Verdict
from trefoil_models import checkpoint
from trefoil_models.checkpoint import EncoderDecoder
from trefoil_models.tokenizer import Tokenizer

SEED = 7
NUM_DOCUMENTS = 200_000
NUM_REWRITES = 600_000
NUM_SAMPLES = 8_000
"""Texts of each kind that the tokenizer is trained on."""
NUM_SENTINELS = 16
LONGEST = 256
PADDED = (64, 32)
"""Tokens to which a text that is read and one that is said are padded for training; longer ones are left out."""
LONGEST_ANSWER = 40
ASKED_AT_ONCE = 120
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
TOKENIZER_FILES = ("spiece.model", "tokenizer_config.json")

CONFIG: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": 2000,
    "d_model": 192,
    "d_kv": 32,
    "num_heads": 6,
    "d_ff": 512,
    "num_layers": 4,
    "num_decoder_layers": 3,
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
RECIPE = Recipe(learning_rate=1.5e-3, final_rate=0.01, weight_decay=0.05, report_every=100)
WARMUP_STEPS = 400
TEXT_FIRST = 0.2
"""Of the time goes to span corruption alone; of the batches after that, the same share of examples."""
SAVE_EVERY = 60.0
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """What is learned from: texts with gaps, and tasks."""

    text: Table
    tasks: Table

    def draw(self, count: int, done: float) -> Table:
        """A batch at this point of the way."""
        if done < TEXT_FIRST:
            return self.text.draw(count)
        num_texts = round(TEXT_FIRST * count)
        return padded.join([self.text.draw(num_texts), self.tasks.draw(count - num_texts)])


def main() -> None:
    """Train, save, ask what was held out, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model; existing files are replaced")
    parser.add_argument("--work", type=Path, help="keep tokenizer and examples here; take what is there")
    parser.add_argument("--minutes", type=float, default=3.5, help="how long to train; two CPU cores need 720")
    parser.add_argument("--device", default="cpu", help="cuda or cpu")
    parser.add_argument("--batch-size", type=int, default=512, help="examples in a step")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        tokenizer, lessons = prepare(work)
        for name in TOKENIZER_FILES:
            shutil.copy(work / name, options.out / name)
    config = {**CONFIG, "vocab_size": tokenizer.vocab_len}
    torch.manual_seed(SEED)
    model = fresh(config).to(options.device)
    schooling = Schooling(model, lessons, batch_size=options.batch_size, seconds=60 * options.minutes)
    num_steps = schooling.run(lambda: save(model, options.out, config))
    save(model, options.out, config)
    verdicts = judge(options.out, options.device)
    training = Training(
        day=date.today(),
        device=f"one {torch.cuda.get_device_name()}" if options.device == "cuda" else "a CPU",
        minutes=options.minutes,
        num_steps=num_steps,
        batch_size=options.batch_size,
    )
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    (options.out / "README.md").write_text(encoder_decoder_card(num_parameters, training, verdicts), encoding="utf-8")
    print(understanding.table(verdicts), understanding.total(verdicts), sep="\n")


def prepare(work: Path) -> tuple[Tokenizer, Lessons]:
    """The folder's tokenizer and examples, made where they are missing."""
    if not (work / TOKENIZER_FILES[-1]).exists():
        train_tokenizer(work)
    tokenizer = Tokenizer.load(work)
    text = _kept(work / "text.safetensors", lambda: list(gapped(tokenizer)))
    tasks = _kept(work / "tasks.safetensors", lambda: list(rewritten(tokenizer)))
    return tokenizer, Lessons(text, tasks)


def _kept(path: Path, make: Callable[[], list[Example]]) -> Table:
    if not path.exists():
        table = padded.tabulate(make(), pad_id=PAD_ID, longest=PADDED)
        save_file({"read": table.read_ES, "said": table.said_EL}, path)
    tensors = load_file(path)
    return Table(tensors["read"], tensors["said"])


def train_tokenizer(folder: Path) -> None:
    """SentencePiece BPE on the world's text.

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
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(written.getvalue())
    about = {
        "tokenizer_class": "T5Tokenizer",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "extra_ids": NUM_SENTINELS,
        "legacy": False,
        "model_max_length": LONGEST,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _chinese_words() -> set[str]:
    told = (value for trait in TRAITS.values() for value in trait.values)
    names = {words[1] for words in (*told, *(name for name, _ in NAMES))}
    known = {word for fact in facts() for word in fact.slots["zh"].values()}
    return {word for word in names | known if not word.isdigit()}


def _is_chinese(character: str) -> bool:
    return "\u4e00" <= character <= "\u9fff"


def gapped(tokenizer: Tokenizer) -> Iterator[Example]:
    """The world's text with spans taken out."""
    rng = Random(SEED + 2)
    for text in rewriting.documents(Random(SEED + 3), NUM_DOCUMENTS):
        yield corrupted(
            tokenizer.encode_ids(text, add_special_tokens=False),
            rng,
            sentinels=tokenizer.sentinel_ids,
            start_id=PAD_ID,
            eos_id=EOS_ID,
            density=0.25,
            span_len=2.0,
        )


def rewritten(tokenizer: Tokenizer) -> Iterator[Example]:
    """The tasks."""
    reader = Reader(tokenizer, (EOS_ID,), longest=LONGEST, start_id=PAD_ID)
    for rewrite in rewriting.training_rewrites(Random(SEED + 4), NUM_REWRITES):
        yield reader.pair(rewrite.source, rewrite.target)


def fresh(config: dict[str, Any]) -> Any:
    """A model to be trained, in which like looks to like: keys begin as the very projections that queries have.

    A question's name then finds the same name in a story from the first step (Trockman and Kolter, "Mimetic
    initialization of self-attention layers", arXiv 2305.09828). From unlike ones a model learns for long without.
    """
    model = checkpoint.build(config, seed=SEED, std_of=std_of)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            if name.endswith(".k.weight"):
                weight.copy_(weights[name.replace(".k.", ".q.")])
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


class Schooling:
    """Training for so many seconds: bfloat16 passes, float32 weights, a rate that follows the clock."""

    def __init__(self, model: EncoderDecoder, lessons: Lessons, *, batch_size: int, seconds: float) -> None:
        self.model, self.batch_size, self.seconds = model, batch_size, seconds
        self.device = next(model.parameters()).device
        self.lessons = Lessons(lessons.text.to(self.device), lessons.tasks.to(self.device))
        self.named = dict(model.named_parameters())
        self.optimizer = adamw(self.named, RECIPE)

    def run(self, saving: Callable[[], None]) -> int:
        """Step after step until the time is up, and how many; `saving` is called now and then. Raises DivergedError."""
        started, saved, step, done = time.monotonic(), 0.0, 0, 0.0
        while done < 1.0:
            loss = self.step(step, done)
            step += 1
            if step % RECIPE.report_every == 0 or step == 1:
                seen = loss.item()  # waits for the device: the clock is then that of what was computed
                seconds = time.monotonic() - started
                if not math.isfinite(seen):
                    raise DivergedError(f"step {step}: loss {seen}")
                print(f"step {step} done {done:.1%} loss {seen:.4f} seconds {seconds:.1f}", flush=True)
                if seconds - saved > SAVE_EVERY:
                    saving()
                    saved = seconds
            done = (time.monotonic() - started) / self.seconds
        return step

    def step(self, step: int, done: float) -> Tensor:
        """One update; its loss, left on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate(step, done)
        batch = self.lessons.draw(self.batch_size, done)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = padded.pair_loss(self.model, batch, pad_id=PAD_ID)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.named.values(), RECIPE.clip)
        self.optimizer.step()
        return loss.detach()


def rate(step: int, done: float) -> float:
    """Up in a line over the first steps, down with the cosine of the time that is gone."""
    left = RECIPE.final_rate + (1 - RECIPE.final_rate) * (1 + math.cos(math.pi * done)) / 2
    return RECIPE.learning_rate * left * min(1.0, (step + 1) / WARMUP_STEPS)


def save(model: EncoderDecoder, out: Path, config: dict[str, Any]) -> None:
    """In bfloat16, which halves the bytes; what the test measures is what was saved."""
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    checkpoint.save(rounded, out, config)
    generation = {"decoder_start_token_id": PAD_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def judge(out: Path, device: str = "cpu") -> list[Verdict]:
    """The held-out test of the saved folder, computed in float32 without a server."""
    model, tokenizer = cast(EncoderDecoder, checkpoint.load(out, device=device)), Tokenizer.load(out)

    def answers(sources: Sequence[str]) -> list[str]:
        starts = range(0, len(sources), ASKED_AT_ONCE)
        return [text for n in starts for text in answered(model, tokenizer, sources[n : n + ASKED_AT_ONCE])]

    return rewriting.judge(answers)


def answered(model: EncoderDecoder, tokenizer: Tokenizer, sources: Sequence[str]) -> list[str]:
    """Greedy answers to texts side by side; sentinels are left in."""
    read = [tokenizer.encode_ids(source) for source in sources]
    longest = max(map(len, read))
    read_NS = torch.tensor([[*ids, *[PAD_ID] * (longest - len(ids))] for ids in read])
    device = next(model.parameters()).device
    said = padded.greedy(model, read_NS.to(device), start_id=PAD_ID, eos_id=EOS_ID, pad_id=PAD_ID, most=LONGEST_ANSWER)
    return [tokenizer.decode([i for i in ids if i != PAD_ID], skip_special_tokens=False).strip() for ids in said]


if __name__ == "__main__":
    main()
