"""The state of a beam search: the continuations that go on, and the best answers so far.

Scores and ends are transformers'; how candidates are found is `beams`' business.
"""

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from trefoil.wire import SamplingParams, TokenScore


class Member(Protocol):
    """What a search must know of a sequence."""

    ids: list[int]
    prompt_len: int

    @property
    def num_outputs(self) -> int: ...
    @property
    def num_left(self) -> int: ...


M = TypeVar("M", bound=Member)


@dataclass(frozen=True, slots=True)
class Branch:
    """A member's continuation by one token: log p of the whole, and the token's own score where asked for."""

    parent: int
    token: int
    total: float
    score: TokenScore | None


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """An answer found: its ids, what ended it, and how good it is."""

    ids: list[int]
    scores: list[TokenScore]
    stop_id: int | None
    score: float


@dataclass(slots=True, eq=False)
class Beams(Generic[M]):
    """One request's beams: the sequences that go on, best first, and the best answers so far, best first."""

    params: SamplingParams
    members: list[M] = field(default_factory=list)
    totals: list[float] = field(default_factory=lambda: [0.0])
    scored: list[list[TokenScore]] = field(default_factory=lambda: [[]])
    answers: list[Hypothesis] = field(default_factory=list)
    is_done: bool = False

    @property
    def width(self) -> int:
        """How many sequences it may come to."""
        return self.params.beams

    @property
    def num_candidates(self) -> int:
        """Enough that `width` of them go on whatever ends."""
        return max(2, 1 + len(self.params.stop_ids)) * self.width

    @property
    def is_level(self) -> bool:
        """Can every member choose its next token now?"""
        return all(member.num_left == 1 for member in self.members)

    def grow(self, candidates: list[Branch]) -> list[Branch]:
        """Take the likeliest continuations, best first; those that go on."""
        num_outputs = self.members[0].num_outputs + 1
        is_last = num_outputs >= self.params.max_tokens
        enders = [is_last or branch.token in self.params.stop_ids for branch in candidates]
        found = [b for b, ends in zip(candidates[: self.width], enders, strict=False) if ends]
        self._keep([self._answer(branch, num_outputs) for branch in found])
        going = [b for b, ends in zip(candidates, enders, strict=True) if not ends][: self.width]
        self.is_done = not going or self._cannot_improve(going[0].total, num_outputs)
        self.totals = [branch.total for branch in going]
        self.scored = [self._scores_through(branch) for branch in going]
        return going

    def _keep(self, found: list[Hypothesis]) -> None:
        self.answers = sorted([*self.answers, *found], key=lambda answer: -answer.score)[: self.width]

    def _answer(self, branch: Branch, num_outputs: int) -> Hypothesis:
        parent = self.members[branch.parent]
        is_stop = branch.token in self.params.stop_ids
        return Hypothesis(
            ids=[*parent.ids[parent.prompt_len :], branch.token],
            scores=self._scores_through(branch),
            stop_id=branch.token if is_stop else None,
            score=branch.total / num_outputs**self.params.length_penalty,
        )

    def _scores_through(self, branch: Branch) -> list[TokenScore]:
        return [*self.scored[branch.parent], *([branch.score] if branch.score else [])]

    def _cannot_improve(self, best_total: float, num_outputs: int) -> bool:
        """Are there answers enough, and none to come that would be better by what a running beam may still score?"""
        if len(self.answers) < self.width:
            return False
        params = self.params
        length = params.max_tokens if params.early_stopping is None and params.length_penalty > 0 else num_outputs
        hope = best_total / length**params.length_penalty
        return params.early_stopping is True or hope <= self.answers[-1].score
