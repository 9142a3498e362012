"""One step on the same weights and batch as trl takes: loss, gradient norm and rewards are the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, Trainer

import tiny
from training.conftest import trainable
from trefoil.training.examples import Comparison, Example, Pair, Reading
from trefoil.training.loop import Objective, Progress, Recipe, Watch, train
from trefoil.training.objectives.dpo import Dpo, with_reference
from trefoil.training.objectives.reward import reward
from trefoil.training.objectives.sft import Sft
from trefoil_models import checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # theirs, not ours
]
NUM_PROMPT = 5


def draw(*lens: int) -> list[Example]:
    return [
        Example(tuple(ids), tuple(n >= NUM_PROMPT for n in range(len(ids)))) for ids in tiny.draw_ids(*lens, vocab=300)
    ]


def after(one: Example, other: Example) -> Example:
    """The other's answer to the one's prompt."""
    return Example((*one.ids[:NUM_PROMPT], *other.ids[NUM_PROMPT:]), other.is_label)


def our_step(folder: Path, objective: Objective[Any], examples: list[Any], **options: Any) -> Progress:
    told: list[Progress] = []
    recipe = Recipe(learning_rate=1e-3, batch_size=len(examples), clip=1e9, report_every=1, **options)
    train(trainable(folder), objective, examples, recipe, watch=Watch(report=told.append))
    return told[0]


def their_step(trainer: Trainer) -> dict[str, float]:
    trainer.train()
    return trainer.state.log_history[0]


def arguments(kind: type, out: Path, **options: Any) -> Any:
    return kind(
        output_dir=str(out),
        max_steps=1,
        per_device_train_batch_size=4,
        logging_steps=1,
        max_grad_norm=1e9,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        **options,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_sft_step_equals_trl(folder: Path, tmp_path: Path, smoothing: float) -> None:
    from trl import SFTConfig, SFTTrainer

    examples = draw(9, 14, 7, 21)
    rows = [
        {"input_ids": list(example.ids), "completion_mask": [int(learn) for learn in example.is_label]}
        for example in examples
    ]
    theirs = their_step(
        SFTTrainer(
            model=tiny.oracle(folder),
            args=arguments(SFTConfig, tmp_path, label_smoothing_factor=smoothing, completion_only_loss=True),
            train_dataset=Dataset.from_list(rows),
            processing_class=_tokenizer(folder),
        )
    )
    ours = our_step(folder, Sft(smoothing), examples)
    assert ours.loss == pytest.approx(theirs["loss"], abs=1e-4)
    assert ours.grad_norm == pytest.approx(theirs["grad_norm"], rel=1e-4)
    assert ours.metrics["mean_token_accuracy"] == pytest.approx(theirs["mean_token_accuracy"], abs=1e-6)


@pytest.mark.parametrize(
    ("objective", "theirs"),
    [
        (Dpo(beta=0.3), {"loss_type": ["sigmoid"]}),
        (Dpo(beta=0.3, loss_type="hinge"), {"loss_type": ["hinge"]}),
        (Dpo(beta=0.3, loss_type="ipo"), {"loss_type": ["ipo"]}),
        (Dpo(beta=0.3, length_normalized=True), {"loss_type": ["sigmoid_norm"]}),
    ],
    ids=["sigmoid", "hinge", "ipo", "length-normalized"],
)
def test_dpo_step_equals_trl(folder: Path, tmp_path: Path, objective: Dpo, theirs: dict[str, Any]) -> None:
    from trl import DPOConfig, DPOTrainer

    reference = tiny.checkpoint(tmp_path / "reference", "llama", std=0.1, seed=1)
    pairs = [Pair(one, after(one, two)) for one, two in zip(draw(9, 14, 7, 21), draw(12, 11, 19, 8), strict=True)]
    rows = [
        {
            "prompt_ids": list(pair.chosen.ids[:NUM_PROMPT]),
            "chosen_ids": list(pair.chosen.ids[NUM_PROMPT:]),
            "rejected_ids": list(pair.rejected.ids[NUM_PROMPT:]),
        }
        for pair in pairs
    ]
    trainer = DPOTrainer(
        model=tiny.oracle(folder),
        ref_model=tiny.oracle(reference),
        args=arguments(DPOConfig, tmp_path, beta=objective.beta, **theirs),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=_tokenizer(folder),
    )
    trainer.train_dataset = Dataset.from_list(rows)  # ids as they are, past its tokenizing
    told = their_step(trainer)
    known = with_reference(checkpoint.load(reference), pairs, budget=30)
    ours = our_step(folder, objective, known, budget=50)
    assert ours.loss == pytest.approx(told["loss"], abs=1e-4)
    assert ours.grad_norm == pytest.approx(told["grad_norm"], rel=1e-4)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert ours.metrics[name] == pytest.approx(told[name], abs=1e-4), name


def test_reward_step_equals_trl(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    folder = tiny.checkpoint(tmp_path / "reward", "llama", std=0.1, head="ForSequenceClassification", num_labels=1)
    pairs = [[[1 + i for i in example.ids] for example in draw(*lens)] for lens in ((9, 14, 7, 21), (12, 11, 19, 8))]
    rows = [{"chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in zip(*pairs, strict=True)]
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32),
        args=arguments(RewardConfig, tmp_path),
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(folder),
    )
    told = their_step(trainer)
    comparisons = [
        Comparison(*(Reading(tuple(ids), (0,) * len(ids)) for ids in (row["chosen_ids"], row["rejected_ids"])))
        for row in rows
    ]
    ours = our_step(folder, reward, comparisons, budget=500)
    assert ours.loss == pytest.approx(told["loss"], abs=1e-4)
    assert ours.grad_norm == pytest.approx(told["grad_norm"], rel=1e-4)
    assert ours.metrics["rewards/margins"] == pytest.approx(told["margin"], abs=1e-4)
    assert ours.metrics["rewards/accuracies"] == pytest.approx(told["accuracy"], abs=1e-6)


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo"])
def test_smoothed_preference_is_a_mixture_of_both_directions(folder: Path, loss_type: str) -> None:
    model = checkpoint.load(folder)
    pair = Pair(*draw(9, 14), ref_chosen=-40.0, ref_rejected=-80.0)
    turned = Pair(pair.rejected, pair.chosen, pair.ref_rejected, pair.ref_chosen)
    smoothed, plain, reverse = (
        float(Dpo(0.3, loss_type, smoothing)(model, [one]).total)
        for smoothing, one in ((0.1, pair), (0.0, pair), (0.0, turned))
    )
    assert smoothed == pytest.approx(0.9 * plain + 0.1 * reverse, rel=1e-5)


def test_reference_is_the_models_own_log_probability(folder: Path) -> None:
    model = checkpoint.load(folder)
    (known,) = with_reference(model, [Pair(*draw(9, 14))], budget=100)
    logits_LV = tiny.oracle_logits(tiny.oracle(folder), known.chosen.ids)
    logprobs_L = torch.log_softmax(logits_LV[:-1], -1).gather(1, torch.tensor(known.chosen.ids[1:])[:, None])[:, 0]
    assert known.ref_chosen == pytest.approx(float(logprobs_L[NUM_PROMPT - 1 :].sum()), abs=1e-3)


def _tokenizer(folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
