"""What a policy learns from its answers, on the same weights, answers and scores as trl's GRPO and a padded PPO."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer

import tiny
from training.conftest import trainable
from trefoil.training.batch import scored_labels
from trefoil.training.examples import Example
from trefoil.training.objectives.grpo import Grpo
from trefoil.training.objectives.ppo import Ppo, ValueHead, gae
from trefoil.training.practice import Tried
from trefoil_models import checkpoint
from trefoil_models.checkpoint import Model

TEMPERATURE = 0.7
PROMPTS = tiny.draw_ids(5, 3, vocab=300)
NUM_ANSWERS = 3
ANSWERS = tiny.draw_ids(4, 1, 6, 5, 2, 6, seed=1, vocab=300)
SCORES = [0.5, -1.0, 2.0, 0.1, 0.1, 0.4]
LONGEST = 6


def answered() -> list[Example]:
    """Three answers to each prompt; an answer of one token among them."""
    prompts = [ids for ids in PROMPTS for _ in range(NUM_ANSWERS)]
    return [
        Example((*prompt, *answer), (*[False] * len(prompt), *[True] * len(answer)))
        for prompt, answer in zip(prompts, ANSWERS, strict=True)
    ]


def tried(model: Model, reference: Model) -> list[Tried]:
    """The answers as the model and the reference see them; by an older policy they were a little likelier or less."""
    examples, generator = answered(), torch.Generator().manual_seed(2)
    with torch.no_grad():
        now, then = (scored_labels(one, examples, temperature=TEMPERATURE) for one in (model, reference))
        drift_R = 0.5 * torch.randn(len(now.logprobs_R), generator=generator)
        rows = (now.logprobs_R + drift_R, then.logprobs_R, now.hidden_RM)
    parts = zip(*(torch.split(each, list(now.lens)) for each in rows), strict=True)
    return [Tried(example, score, *part) for example, score, part in zip(examples, SCORES, parts, strict=True)]


def padded(parts: Sequence[Tensor]) -> Tensor:
    """[N, LONGEST], zeros behind."""
    return torch.stack([torch.nn.functional.pad(part, (0, LONGEST - len(part))) for part in parts])


def norm(model: Any, *more: Tensor) -> float:
    return float(torch.nn.utils.get_total_norm([p.grad for p in (*model.parameters(), *more) if p.grad is not None]))


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return tiny.checkpoint(tmp_path / "reference", "llama", std=0.1, seed=1)


@pytest.mark.filterwarnings("ignore")  # theirs, not ours
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
@pytest.mark.parametrize("scales", [True, False])
def test_grpo_equals_trl(folder: Path, reference: Path, tmp_path: Path, loss_type: str, scales: bool) -> None:
    from trl import GRPOConfig, GRPOTrainer

    model = trainable(folder)
    seen = tried(model, checkpoint.load(reference))
    ours = Grpo(NUM_ANSWERS, 0.2, 0.3, TEMPERATURE, loss_type, scales)
    graded = ours.credit(seen)
    loss = ours(model, graded)
    (loss.total / loss.weight).backward()  # type: ignore[no-untyped-call]

    prompts = [ids for ids in PROMPTS for _ in range(NUM_ANSWERS)]
    words = AutoTokenizer.from_pretrained(folder)
    words.pad_token = words.eos_token
    trainer = GRPOTrainer(
        model=tiny.oracle(folder),
        reward_funcs=lambda **_: SCORES,
        rollout_func=lambda *_: {"prompt_ids": prompts, "completion_ids": ANSWERS, "logprobs": None},
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=6,
            num_generations=NUM_ANSWERS,
            temperature=TEMPERATURE,
            beta=0.3,
            loss_type=loss_type,
            scale_rewards="group" if scales else "none",
            use_bias_correction_kl=False,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 2),
        processing_class=words,
    )
    trainer.ref_model.load_state_dict(tiny.oracle(reference).state_dict())
    batch = trainer._generate_and_score_completions([{"prompt": "a"}] * 6)
    assert [one.advantage for one in graded] == pytest.approx(batch["advantages"].tolist(), abs=1e-5)
    mask = batch["completion_mask"].bool()
    assert_close(padded([one.reference_R for one in seen])[mask], batch["ref_per_token_logps"][mask])
    batch["old_per_token_logps"] = padded([one.logprobs_R for one in seen])
    theirs = trainer._compute_loss(trainer.model, batch)
    theirs.backward()
    assert float(loss.total.detach() / loss.weight) == pytest.approx(float(theirs), abs=1e-4)
    assert norm(model) == pytest.approx(norm(trainer.model), rel=1e-4)
    (clipped,) = trainer._metrics["eval"]["clip_ratio/region_mean"]
    assert clipped > 0
    if loss_type == "dapo":  # theirs is a mean over tokens
        assert float(loss.sums["clip_fraction"]) / loss.weight == pytest.approx(clipped, abs=1e-6)


def test_ppo_equals_a_padded_computation(folder: Path, reference: Path) -> None:
    """Line by line what trl's PPOTrainer did (0.24), but for its score one token late and the value it put there."""
    model, theirs = trainable(folder), tiny.oracle(folder)
    value = ValueHead(32, torch.device("cpu"))
    torch.nn.init.normal_(value.weight, std=0.3, generator=torch.Generator().manual_seed(4))
    ours = Ppo(value, kl_coef=0.3, temperature=TEMPERATURE, gamma=0.9)
    seen = tried(model, checkpoint.load(reference))
    valued = ours.credit(seen)
    with torch.no_grad():
        value.weight *= 1.5  # what the head learned since, some of it beyond the clip
    loss = ours(model, valued)
    (loss.total / loss.weight).backward()  # type: ignore[no-untyped-call]
    our_norm = norm(model, value.weight, value.bias)
    for parameter in value.parameters():
        parameter.grad = None

    lens_N = torch.tensor([len(answer) for answer in ANSWERS])
    mask = torch.arange(LONGEST) < lens_N[:, None]
    old, ref = padded([one.logprobs_R for one in seen]), padded([one.reference_R for one in seen])
    values = padded([value(one.hidden_RM) / 1.5 for one in seen]).detach()  # there is no bias
    rewards = -0.3 * (old - ref)
    rewards[torch.arange(len(SCORES)), lens_N - 1] += torch.tensor(SCORES)
    advantages, last = [], torch.zeros(len(SCORES))
    for t in reversed(range(LONGEST)):
        after = values[:, t + 1] if t < LONGEST - 1 else 0.0
        last = rewards[:, t] + 0.9 * after - values[:, t] + 0.9 * 0.95 * last
        advantages.append(last)
    advantage = torch.stack(advantages[::-1], 1)
    returns = advantage + values
    mean, var = advantage[mask].mean(), advantage[mask].var()
    advantage = (advantage - mean) * torch.rsqrt(var + 1e-8)

    new, guessed = zip(*(_seen_by(theirs, value, prompt, answer) for prompt, answer in _pairs()), strict=True)
    new, guessed = padded(new), padded(guessed)
    near = torch.clamp(guessed, values - 0.2, values + 0.2)
    value_loss = 0.5 * torch.max((guessed - returns) ** 2, (near - returns) ** 2)[mask].mean()
    ratio = torch.exp(new - old)
    free, held = -advantage * ratio, -advantage * torch.clamp(ratio, 0.8, 1.2)
    policy_loss = torch.max(free, held)[mask].mean()
    total = policy_loss + 0.1 * value_loss
    total.backward()  # type: ignore[no-untyped-call]
    told = {name: float(each) / loss.weight for name, each in loss.sums.items()}
    assert float(loss.total.detach() / loss.weight) == pytest.approx(float(total), abs=1e-4)
    assert told["policy_loss"] == pytest.approx(float(policy_loss), abs=1e-4)
    assert told["value_loss"] == pytest.approx(float(value_loss), abs=1e-4)
    assert told["clip_fraction"] == pytest.approx(float((held > free)[mask].float().mean()), abs=1e-6) != 0
    assert not torch.equal(near[mask], guessed[mask]), "the value's clip is at work"
    assert our_norm == pytest.approx(norm(theirs, value.weight, value.bias), rel=1e-4)


def _pairs() -> list[tuple[list[int], list[int]]]:
    prompts = [ids for ids in PROMPTS for _ in range(NUM_ANSWERS)]
    return list(zip(prompts, ANSWERS, strict=True))


def _seen_by(model: Any, value: ValueHead, prompt: list[int], answer: list[int]) -> tuple[Tensor, Tensor]:
    """transformers' log p of an answer's tokens, and the values of the rows that chose them."""
    out = model(torch.tensor([prompt + answer]), output_hidden_states=True)
    rows = slice(len(prompt) - 1, -1)
    logprobs = (out.logits[0, rows] / TEMPERATURE).log_softmax(-1)
    return logprobs.gather(1, torch.tensor(answer)[:, None])[:, 0], value(out.hidden_states[-1][0, rows])


def test_advantages_without_discount_or_values_are_the_rewards_to_come() -> None:
    rewards_R = torch.tensor([1.0, -2.0, 4.0])
    advantages_R = gae(rewards_R, torch.zeros(3), gamma=1.0, gae_lambda=1.0)
    torch.testing.assert_close(advantages_R, torch.tensor([3.0, 2.0, 4.0]))
    torch.testing.assert_close(gae(rewards_R, torch.zeros(3), gamma=1.0, gae_lambda=0.0), rewards_R)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
