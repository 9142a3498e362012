"""A policy's answers: drawn anew from the weights as they are, scored as a served reward model scores, learned from."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
import tiny_encoders
from training.bench import Bench
from trefoil import wire
from trefoil.api.fleet import read_model
from trefoil.api.routes.tasks.reward import Chat, PlainAnswer, Turn, encoded
from trefoil.metrics import Metrics
from trefoil.rows import RowError
from trefoil.settings import ModelSource, Settings
from trefoil.store.jobs import State
from trefoil.training.judge import Judge
from trefoil.training.origin import Origin
from trefoil.training.rollout import Rollout
from trefoil_models import checkpoint
from trefoil_models.attend import packed_rows
from trefoil_models.checkpoint import Model
from trefoil_models.config_keys import CheckpointError
from trefoil_models.lora import LoraShape, attach
from trefoil_models.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

PROMPTS = [{"prompt": "one two"}, {"prompt": [{"role": "user", "content": "hi"}]}, {"prompt": "the cat"}]
CPU = torch.device("cpu")


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    head = {"head": "ForSequenceClassification", "num_labels": 1}
    return tiny.checkpoint(tmp_path / "judge", "llama", std=0.1, seed=5, **head)


def rollout(model: Model, tokenizer: Tokenizer, **params: Any) -> Rollout:
    return Rollout(model, tokenizer, wire.SamplingParams(max_tokens=8, stop_ids=(0,), **params))


def greedy(model: Model, ids: list[int], count: int) -> list[int]:
    """The likeliest token, again and again, without pages."""
    said: list[int] = []
    for _ in range(count):
        logits_TV = model.lm_head.logits(model(*packed_rows([ids + said])))
        said.append(int(logits_TV[-1, : tiny.TOKENIZER_VOCAB].argmax()))
    return said


def test_answers_come_from_the_weights_as_they_are(model: Model, tokenizer: Tokenizer) -> None:
    prompts = tiny.draw_ids(5, 9, vocab=300)
    attach(model, LoraShape(r=4), seed=0)
    likeliest = rollout(model, tokenizer, temperature=0.0)
    before = likeliest.answers(prompts, each=1, seed="a")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_up"):
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    after = likeliest.answers(prompts, each=1, seed="a")
    assert before != after
    for ids, (answer,) in zip(prompts, after, strict=True):
        assert list(answer) == greedy(model, ids, len(answer))


def test_same_seed_same_answers_in_groups_that_differ(model: Model, tokenizer: Tokenizer) -> None:
    prompts = tiny.draw_ids(5, 9, vocab=300)
    drawn = rollout(model, tokenizer)
    first, again, other = (drawn.answers(prompts, each=70, seed=seed) for seed in ("a", "a", "b"))
    assert first == again != other
    assert [len(set(group)) for group in first] == [70, 70]  # more than fit at once
    assert all(0 not in answer[:-1] for group in first for answer in group)
    assert any(answer[-1] == 0 for group in first for answer in group)


def test_scores_are_those_of_the_served_reward_model(judge: Path) -> None:
    given = [("one two", " three"), (({"role": "user", "content": "hi"},), "the cat")]
    asked = [
        PlainAnswer(prompt="one two", response=" three"),
        Chat(messages=[Turn(role="user", content="hi"), Turn(role="assistant", content="the cat")]),
    ]
    served = read_model(ModelSource("judge", str(judge)), Settings(models=()), Metrics())
    model = checkpoint.load(judge)
    scores = Judge.load(judge, None, dtype=torch.float32, device=CPU, budget=1).scores(given)
    for score, one in zip(scores, asked, strict=True):
        hidden_TM = model(*packed_rows([encoded(served, one).ids]))
        assert score == pytest.approx(float(model.heads["class"](hidden_TM[-1:])[0, 0]), abs=1e-6)


def test_a_classifier_scores_by_one_of_its_labels(tmp_path: Path) -> None:
    folder = tiny_encoders.checkpoint(tmp_path / "classes", "bert", "ForSequenceClassification")
    scores = [
        Judge.load(folder, label, dtype=torch.float32, device=CPU, budget=64).scores([("one ", "two")])[0]
        for label in ("LABEL_0", "LABEL_1")
    ]
    assert scores[0] != scores[1]
    with pytest.raises(CheckpointError, match="'LABEL_9' is none of LABEL_0"):
        Judge.load(folder, "LABEL_9", dtype=torch.float32, device=CPU, budget=64)


def test_an_answer_too_long_for_the_reward_model_is_told(judge: Path) -> None:
    with pytest.raises(RowError, match="reads at most 256 tokens, a prompt and its answer have 601"):
        Judge.load(judge, None, dtype=torch.float32, device=CPU, budget=64).scores([("0" * 300, "1" * 300)])


def test_the_reference_is_what_the_model_was(model: Model) -> None:
    rows = packed_rows(tiny.draw_ids(9, vocab=300))
    first = model(*rows).detach()
    origin = Origin(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    now = model(*rows).detach()
    with origin.back():
        torch.testing.assert_close(model(*rows).detach(), first, rtol=0, atol=0)
    torch.testing.assert_close(model(*rows).detach(), now, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("grpo", {"num_generations": 32, "batch_size": 6}),
        ("ppo", {"batch_size": 48, "num_updates": 4, "gradient_checkpointing": True}),
    ],
)
def test_answers_get_better(bench: Bench, folder: Path, judge: Path, method: str, given: dict[str, Any]) -> None:
    rows = PROMPTS * (2 if method == "grpo" else 16)
    quick = {"learning_rate": 1e-2, "lora": None, "kl_coef": 0.01, "max_completion_tokens": 4, "n_epochs": 20}
    job = bench.run(folder, method, rows, judge=judge, **quick, **given)
    assert job.state == State.SUCCEEDED, job.error
    told = [event.data for event in bench.store.jobs.events(job.id) if event.type == "metrics"]
    rewards = [data["reward"] for data in told if "reward" in data]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.15
    assert told[0]["kl"] == 0 < told[-2]["kl"]
    measured = [model.metrics["valid_reward"] for model in reversed(bench.store.catalog.checkpoints(job.id))]
    assert measured[-1] > 0.1
    assert job.result["trained_tokens"] > 0
    tensors = [set(load_file(path / "model.safetensors")) for path in (bench.folder_of(job), folder)]
    assert tensors[0] == tensors[1], "the value head stays behind"


def test_a_penalty_keeps_the_policy_near_its_reference(bench: Bench, folder: Path, judge: Path) -> None:
    quick = {"learning_rate": 1e-2, "lora": None, "max_completion_tokens": 4, "n_epochs": 10, "batch_size": 3}
    far, near = (
        bench.run(folder, "grpo", PROMPTS, judge=judge, kl_coef=kl_coef, num_generations=16, **quick)
        for kl_coef in (0.0, 2.0)
    )
    ends = [
        [
            event.data["kl"]
            for event in bench.store.jobs.events(job.id)
            if event.type == "metrics" and "kl" in event.data
        ]
        for job in (far, near)
    ]
    assert ends[1][-1] < ends[0][-1] / 2


@pytest.mark.parametrize(
    ("row", "given", "cause"),
    [
        ({"prompt": "a", "completion": "b"}, {}, "line 1: it is no prompt alone"),
        ({"messages": [{"role": "user", "content": "a"}]}, {}, "line 1: it is no prompt alone"),
        (
            {"prompt": "0" * 100},
            {"max_completion_tokens": 200},
            "a prompt of 100 tokens, the limit beside .* 200 is 56",
        ),
        ({"prompt": "a"}, {"max_completion_tokens": 256}, "an answer of 256 tokens leaves no room"),
    ],
)
def test_a_line_that_is_no_prompt_fails_the_job(
    bench: Bench, folder: Path, judge: Path, row: dict[str, Any], given: dict[str, Any], cause: str
) -> None:
    job = bench.run(folder, "grpo", [row], judge=judge, **given)
    assert (job.state, job.error["code"]) == (State.FAILED, "invalid_training_file")
    assert re.search(cause, job.error["message"]), job.error
