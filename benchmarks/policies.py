"""Steps of GRPO beside trl's GRPOTrainer: the same prompts, as many answers of the same length, one process each.

    python benchmarks/policies.py [--lora] [--steps 2]

Both score an answer by how many of its ids are even, so that no reward model's time is in the number. Refuses to time
what fails its check: answers must be as long, and as surprising to the untrained model, on both sides.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from beside_trl import found_by_each, peak_mib

PROMPTS, PROMPT_LEN = 4, 32
ANSWERS, ANSWER_LEN = 8, 64
RANK = 16


def main() -> None:
    """Run both, compare what they drew, print a line each."""
    found = found_by_each(__file__, __doc__, {"trefoil": run_trefoil, "trl": run_trl}, steps=2)
    ours, theirs = found.values()
    assert ours["length"] == theirs["length"] == ANSWER_LEN, found
    assert abs(ours["entropy"] - theirs["entropy"]) < 0.1, found
    for name, result in found.items():
        print(f"{name}: {result['step_s']:.2f} s a step, peak {result['peak_mib']:.0f} MiB")


def prompts(steps: int) -> list[list[int]]:
    """The same random ids for both; one step more than is timed, to warm up."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 30_000, ((steps + 1) * PROMPTS, PROMPT_LEN), generator=generator).tolist()


def evenness(ids: Any) -> float:
    """The score of an answer."""
    return sum(i % 2 == 0 for i in ids) / len(ids)


def run_trefoil(folder: Path, steps: int, lora: bool) -> dict[str, float]:
    """Our loop."""
    from trefoil.training.examples import Asked
    from trefoil.training.loop import Progress, Recipe, Watch, train
    from trefoil.training.objectives.grpo import Grpo
    from trefoil.training.origin import Origin
    from trefoil.training.practice import Practice
    from trefoil.training.rollout import Rollout
    from trefoil.wire import SamplingParams
    from trefoil_models import checkpoint
    from trefoil_models.lora import LoraShape, attach
    from trefoil_models.tokenizer import Tokenizer

    model, tokenizer = checkpoint.load(folder), Tokenizer.load(folder)
    for parameter in model.parameters():
        parameter.requires_grad_(not lora)
    if lora:
        attach(model, LoraShape(r=RANK), seed=0)

    class Evenness:
        """Scores as `evenness` does; every id has a text of its own."""

        def scores(self, answered: list[tuple[Any, str]]) -> list[float]:
            return [evenness(tokenizer.encode_ids(answer)) for _, answer in answered]

    rollout = Rollout(model, tokenizer, SamplingParams(max_tokens=ANSWER_LEN))
    policy = Grpo(num_answers=ANSWERS)
    practice = Practice(model, policy, rollout, Evenness(), Origin(model), num_updates=1, budget=2048, seed=0)  # type: ignore[arg-type]
    asked = [Asked(tuple(ids), "") for ids in prompts(steps)]
    told: list[tuple[float, Progress]] = []
    recipe = Recipe(1e-6, batch_size=PROMPTS, budget=2048, report_every=1)
    watch = Watch(report=lambda progress: told.append((time.monotonic(), progress)))
    train(model, policy, asked, recipe, watch=watch, prepare=practice.lesson)
    first = told[0][1].metrics
    return _result(told[-1][0] - told[0][0], steps, first["entropy"], first["completion_tokens"])


def run_trl(folder: Path, steps: int, lora: bool) -> dict[str, float]:
    """trl's trainer, its answers drawn by transformers."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    moments: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            moments.append(time.monotonic())

    words = AutoTokenizer.from_pretrained(folder)
    words.pad_token = words.eos_token
    texts = [words.decode(ids) for ids in prompts(steps)]
    with tempfile.TemporaryDirectory() as out:
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            reward_funcs=lambda completion_ids, **_: [evenness(ids) for ids in completion_ids],
            args=GRPOConfig(
                output_dir=out,
                per_device_train_batch_size=PROMPTS * ANSWERS,
                num_generations=ANSWERS,
                max_completion_length=ANSWER_LEN,
                generation_kwargs={"min_new_tokens": ANSWER_LEN},
                beta=0.04,
                loss_type="grpo",
                max_steps=steps + 1,
                logging_steps=1,
                learning_rate=1e-6,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                shuffle_dataset=False,
            ),
            train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
            processing_class=words,
            peft_config=LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear") if lora else None,
            callbacks=[Clock()],
        )
        trainer.train()
    first = trainer.state.log_history[0]
    return _result(moments[-1] - moments[0], steps, first["entropy"], first["completions/mean_length"])


def _result(seconds: float, steps: int, entropy: float, length: float) -> dict[str, float]:
    return {"step_s": seconds / steps, "peak_mib": peak_mib(), "entropy": entropy, "length": length}


if __name__ == "__main__":
    main()
