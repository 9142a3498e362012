"""Trains the bundled demo decoder from nothing: `python -m trefoil_demo.decoder --out DIR`.

Tokenizer, pre-training on documents of the world, instruction tuning on chats, then the held-out questions.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import tokenizers
import torch
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from trefoil.rows import Chat
from trefoil.training.batch import Example
from trefoil.training.data import Reader, chat_example, text_examples
from trefoil.training.loop import Objective, Progress, Recipe, Watch, train
from trefoil.training.objectives.causal_lm import causal_lm
from trefoil.training.objectives.sft import Sft
from trefoil_demo import world
from trefoil_demo.card import model_card
from trefoil_demo.facts import COUNTRIES, OPPOSITES, THINGS
from trefoil_demo.tally import Reply, Tally
from trefoil_demo.world import Question
from trefoil_models import checkpoint
from trefoil_models.attend import packed_rows
from trefoil_models.checkpoint import Model
from trefoil_models.tokenizer import Tokenizer

SEED = 20
NUM_THREADS = 2
"""Sums in floating point depend on how many threads share them: the same number gives the same weights."""
NUM_DOCUMENTS = 25_000
NUM_CHATS = 45_000
WINDOW = 256
LONGEST_ANSWER = 40
EOS, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
WORDS = r"'s| ?[\p{L}&&[^\p{Han}]]+|\p{Han}|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
"""One token at most is a word, a Chinese character, or a digit: a name then reads the same wherever it stands."""

TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 2048,
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "head_dim": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
    "attention_bias": False,
    "use_sliding_window": False,
}
PRETRAIN = Recipe(learning_rate=3e-3, budget=2048, final_rate=0.5, report_every=100)
TUNE = Recipe(learning_rate=2.5e-3, budget=2048, final_rate=0.01, evaluate_every=500, report_every=100)


def main() -> None:
    """Train, save, ask the held-out questions, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model; existing files are replaced")
    out: Path = parser.parse_args().out
    torch.set_num_threads(NUM_THREADS)
    started = time.monotonic()
    documents = list(world.documents(Random(SEED), NUM_DOCUMENTS))
    chats = list(world.chats(Random(SEED + 1), NUM_CHATS))
    tokenizer = train_tokenizer(documents, chats, out)
    model = train_model(documents, chats, tokenizer)
    tally = Tally(ask(model, tokenizer, world.held_out_questions()))
    checkpoint.save(model, out, _with_ids(tokenizer))
    minutes = (time.monotonic() - started) / 60
    (out / "README.md").write_text(_card(model, tally, minutes), encoding="utf-8")
    print(tally.table(), f"{minutes:.1f} minutes", sep="\n")


def train_tokenizer(documents: Sequence[str], chats: Sequence[list[world.Message]], out: Path) -> Tokenizer:
    """Byte-level BPE on the world's text, written as a model folder's tokenizer files."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[EOS, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([*documents, *(message["content"] for chat in chats for message in chat)], trainer)
    out.mkdir(parents=True, exist_ok=True)
    backend.save(str(out / "tokenizer.json"))
    roles = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": EOS,
        "chat_template": TEMPLATE,
    }
    _write_json(out / "tokenizer_config.json", {**roles, "model_max_length": CONFIG["max_position_embeddings"]})
    ends = [backend.token_to_id(END), backend.token_to_id(EOS)]
    sampling = {"do_sample": True, "temperature": 0.1}
    _write_json(out / "generation_config.json", {"eos_token_id": ends, "pad_token_id": ends[1], **sampling})
    return Tokenizer.load(out)


def train_model(documents: Sequence[str], chats: Sequence[list[world.Message]], tokenizer: Tokenizer) -> Model:
    """Pre-train on the documents, then tune on the chats."""
    model = checkpoint.build(_with_ids(tokenizer), seed=SEED)
    end_id, eos_id = _ends(tokenizer)
    windows = list(text_examples(documents, tokenizer, window=WINDOW, eos_id=eos_id))
    reading = Reader(tokenizer, (end_id,), longest=CONFIG["max_position_embeddings"])
    turns = [chat_example(Chat(tuple(chat)), reading) for chat in chats]
    for name, objective, examples, recipe in (("text", causal_lm, windows, PRETRAIN), ("chat", Sft(), turns, TUNE)):
        _train(name, model, tokenizer, objective, examples, recipe)
    return model


def _train(
    name: str,
    model: Model,
    tokenizer: Tokenizer,
    objective: Objective[Example],
    examples: list[Example],
    recipe: Recipe,
) -> None:
    started = time.monotonic()

    def report(progress: Progress) -> None:
        seconds = time.monotonic() - started
        print(f"{name} {progress.step}/{progress.num_steps} loss={progress.loss:.4f} seconds={seconds:.0f}", flush=True)

    def evaluate(step: int) -> None:
        print(f"held out: {Tally(ask(model, tokenizer, world.held_out_questions()[::4])).accuracy:.1%}", flush=True)

    train(model, objective, examples, recipe, watch=Watch(report=report, evaluate=evaluate))


def ask(model: Model, tokenizer: Tokenizer, questions: Sequence[Question]) -> list[Reply]:
    """Greedy answers to all questions side by side, each token from a whole forward pass."""
    ends = _ends(tokenizer)
    prompts = [tokenizer.encode_ids(tokenizer.render_chat(q.messages), add_special_tokens=False) for q in questions]
    said: list[list[int]] = [[] for _ in prompts]
    for _ in range(LONGEST_ANSWER):
        going = [n for n in range(len(prompts)) if not said[n] or said[n][-1] not in ends]
        if not going:
            break
        for n, token_id in zip(going, _next_ids(model, [prompts[n] + said[n] for n in going]), strict=True):
            said[n].append(token_id)
    return [
        Reply(question, tokenizer.decode(ids), has_stopped=ids[-1] in ends)
        for question, ids in zip(questions, said, strict=True)
    ]


@torch.no_grad()
def _next_ids(model: Model, sequences: list[list[int]]) -> list[int]:
    rows, attend = packed_rows(sequences)
    last = torch.tensor([len(ids) for ids in sequences]).cumsum(0) - 1
    picked: list[int] = model.lm_head.logits(model(rows, attend)[last]).argmax(-1).tolist()
    return picked


def _ends(tokenizer: Tokenizer) -> tuple[int, int]:
    """The ids that end an answer and a text."""
    (end_id,) = tokenizer.encode_ids(END, add_special_tokens=False)
    (eos_id,) = tokenizer.encode_ids(EOS, add_special_tokens=False)
    return end_id, eos_id


def _with_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    end_id, eos_id = _ends(tokenizer)
    return {**CONFIG, "eos_token_id": end_id, "pad_token_id": eos_id}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _card(model: Model, tally: Tally, minutes: float) -> str:
    counts = {
        "countries": len(COUNTRIES),
        "things": len(THINGS),
        "pairs": len(OPPOSITES),
        "documents": NUM_DOCUMENTS,
        "chats": NUM_CHATS,
        "window": WINDOW,
    }
    return model_card(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        tally=tally,
        minutes=minutes,
        counts=counts,
        model_type=CONFIG["model_type"],
        context=CONFIG["max_position_embeddings"],
    )


if __name__ == "__main__":
    main()
