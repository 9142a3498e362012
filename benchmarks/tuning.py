"""Training throughput and peak memory beside trl's SFTTrainer with packing, on the same rows, one process each.

    python benchmarks/tuning.py [--lora] [--steps 3]

Refuses to time what fails its check: the first losses must agree as far as another order of the rows lets them.
"""

import tempfile
import time
from pathlib import Path

import torch

from beside_trl import found_by_each, peak_mib

ROWS = 1024
LENGTH = 256
RANK = 16


def main() -> None:
    """Run both, compare the losses, print a line each."""
    found = found_by_each(__file__, __doc__, {"trefoil": run_trefoil, "trl": run_trl}, steps=3)
    losses = [result["loss"] for result in found.values()]
    assert abs(losses[0] - losses[1]) < 0.05, f"the first losses differ: {losses}"
    for name, result in found.items():
        print(f"{name}: {result['tokens_per_s']:.0f} tokens/s, peak {result['peak_mib']:.0f} MiB")


def rows(steps: int) -> list[list[int]]:
    """The same random ids for both; one step more than is timed, to warm up."""
    generator = torch.Generator().manual_seed(0)
    count = (steps + 1) * ROWS // LENGTH
    return torch.randint(1, 30_000, (count, LENGTH), generator=generator).tolist()


def run_trefoil(folder: Path, steps: int, lora: bool) -> dict[str, float]:
    """Our loop."""
    from trefoil.training.examples import Example
    from trefoil.training.loop import Progress, Recipe, Watch, train
    from trefoil.training.objectives.sft import Sft
    from trefoil_models import checkpoint
    from trefoil_models.lora import LoraShape, attach

    model = checkpoint.load(folder)
    for parameter in model.parameters():
        parameter.requires_grad_(not lora)
    if lora:
        attach(model, LoraShape(r=RANK), seed=0)
    examples = [Example(tuple(ids), (False, *[True] * (len(ids) - 1))) for ids in rows(steps)]
    told: list[tuple[float, Progress]] = []
    recipe = Recipe(1e-5, batch_size=ROWS // LENGTH, budget=ROWS, report_every=1)
    watch = Watch(report=lambda progress: told.append((time.monotonic(), progress)))
    train(model, Sft(), examples, recipe, watch=watch)
    return _result(told[-1][0] - told[0][0], steps, told[0][1].loss)


def run_trl(folder: Path, steps: int, lora: bool) -> dict[str, float]:
    """trl's trainer."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    moments: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            moments.append(time.monotonic())

    settings = {
        "packing": True,
        "max_length": ROWS,
        "per_device_train_batch_size": 1,
        "max_steps": steps + 1,
        "logging_steps": 1,
        "learning_rate": 1e-5,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "shuffle_dataset": False,
    }
    with tempfile.TemporaryDirectory() as out:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            args=SFTConfig(output_dir=out, **settings),
            train_dataset=Dataset.from_list([{"input_ids": ids} for ids in rows(steps)]),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear") if lora else None,
            callbacks=[Clock()],
        )
        trainer.train()
    return _result(moments[-1] - moments[0], steps, trainer.state.log_history[0]["loss"])


def _result(seconds: float, steps: int, loss: float) -> dict[str, float]:
    return {"tokens_per_s": steps * ROWS / seconds, "peak_mib": peak_mib(), "loss": loss}


if __name__ == "__main__":
    main()
