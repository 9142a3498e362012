"""A policy learns from its own answers: they are drawn, scored, compared with the reference's view of them, and given
to the policy's objective, which says what each of their tokens deserves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trefoil.training.batch import plan_epoch, scored_labels
from trefoil.training.examples import Asked, Example
from trefoil.training.judge import Judge
from trefoil.training.loop import Lesson, Loss
from trefoil.training.origin import Origin
from trefoil.training.rollout import Rollout
from trefoil_models.checkpoint import Model


@dataclass(frozen=True, slots=True)
class Tried:
    """An answer, whose tokens are the example's labels: its score, log p of its tokens by the policy that gave it and
    by the reference, and the policy's rows that chose them.
    """

    example: Example
    score: float
    logprobs_R: Tensor
    reference_R: Tensor
    hidden_RM: Tensor


class Policy(Protocol):
    """An objective over its own answers. `own` are parameters that learn beside the model's."""

    @property
    def temperature(self) -> float: ...
    @property
    def num_answers(self) -> int:
        """To each prompt."""
        ...

    @property
    def own(self) -> Mapping[str, nn.Parameter]: ...
    def credit(self, tried: Sequence[Tried], /) -> Sequence[Any]:
        """What each answer deserves, as examples of the loss; answers to one prompt stand side by side."""
        ...

    def __call__(self, model: Model, examples: Sequence[Any], /) -> Loss: ...


@dataclass(frozen=True, slots=True)
class Practice:
    """Everything a step of a policy needs."""

    model: Model
    policy: Policy
    rollout: Rollout
    judge: Judge
    origin: Origin
    num_updates: int
    budget: int
    seed: int

    def lesson(self, passes: Sequence[Sequence[Asked]], step: int) -> Lesson[Any]:
        """Answer the step's prompts; all answers are learned from at once, as often as there are updates."""
        self.model.train(False)
        asked = [one for some in passes for one in some]
        examples, scores = self._answered(asked, each=self.policy.num_answers, seed=f"{self.seed} {step}")
        tried = self._tried(examples, scores)
        self.model.train(True)
        lessons = self.policy.credit(tried)
        lens = [len(example) for example in examples]
        numbers = [
            plan_epoch(lens, self.budget, seed=self.seed, epoch=step * self.num_updates + update)
            for update in range(self.num_updates)
        ]
        return Lesson([[[lessons[n] for n in some] for some in update] for update in numbers], _told(tried))

    def measure(self, asked: Sequence[Asked]) -> dict[str, float]:
        """The mean score of one answer to each prompt, drawn alike each time."""
        _, scores = self._answered(asked, each=1, seed="held out")
        return {"reward": sum(scores) / len(scores)}

    def _answered(self, asked: Sequence[Asked], *, each: int, seed: str) -> tuple[list[Example], list[float]]:
        answers = self.rollout.answers([one.ids for one in asked], each=each, seed=seed)
        pairs = [(one, ids) for one, several in zip(asked, answers, strict=True) for ids in several]
        decode = self.rollout.tokenizer.decode
        scores = self.judge.scores([(one.prompt, decode(ids)) for one, ids in pairs])
        return [_example(one.ids, ids) for one, ids in pairs], scores

    @torch.no_grad()
    def _tried(self, examples: Sequence[Example], scores: Sequence[float]) -> list[Tried]:
        found: dict[int, Tried] = {}
        for numbers in plan_epoch([len(example) for example in examples], self.budget, seed=0, epoch=0):
            some = [examples[n] for n in numbers]
            now = scored_labels(self.model, some, temperature=self.policy.temperature)
            with self.origin.back():
                then = scored_labels(self.model, some, temperature=self.policy.temperature)
            parts = [torch.split(rows, list(now.lens)) for rows in (now.logprobs_R, then.logprobs_R, now.hidden_RM)]
            for n, logprobs_R, reference_R, hidden_RM in zip(numbers, *parts, strict=True):
                found[n] = Tried(examples[n], scores[n], logprobs_R, reference_R, hidden_RM)
        return [found[n] for n in range(len(examples))]


def _example(prompt: Sequence[int], answer: Sequence[int]) -> Example:
    return Example((*prompt, *answer), (*[False] * len(prompt), *[True] * len(answer)))


def _told(tried: Sequence[Tried]) -> dict[str, float]:
    """Means over the answers: their score, log-ratio to the reference, surprise a token, and length."""
    num_tokens = sum(len(one.logprobs_R) for one in tried)
    return {
        "reward": sum(one.score for one in tried) / len(tried),
        "kl": sum(float((one.logprobs_R - one.reference_R).sum()) for one in tried) / len(tried),
        "entropy": -sum(float(one.logprobs_R.sum()) for one in tried) / num_tokens,
        "completion_tokens": num_tokens / len(tried),
    }
