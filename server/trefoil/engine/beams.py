"""Beam search: of all continuations of a request's beams, which go on and which are answers.

After transformers' rules, so that the ids are the same: of the likeliest candidates, twice as many as beams or more,
those that end are answers if they are among the first `beams`, the best of the others go on; an answer's score is
log p / length**length_penalty (Wu et al., arXiv 1609.08144, section 7, in the form everybody uses). Whose pages a
beam holds is the scheduler's business.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from trefoil.engine.sampler import adjust, token_scores
from trefoil.engine.sequence import Sequence
from trefoil.wire import SamplingParams, TokenScore


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
class Beams:
    """One request's beams: the sequences that go on, best first, and the best answers so far, best first."""

    params: SamplingParams
    members: list[Sequence] = field(default_factory=list)
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


def grow_all(logits_NV: Tensor, takers: Seq[Sequence], never: Tensor) -> Iterator[tuple[Beams, list[Branch]]]:
    """Let every request's beams grow by one token; rows of a request stand together. No id of `never` is chosen."""
    if not takers:
        return
    logprobs_NV = logits_NV.log_softmax(-1)
    logprobs_NV.index_fill_(1, never, -torch.inf)
    for logprobs_V, taker in zip(logprobs_NV, takers, strict=True):
        adjust(logprobs_V, taker)
    most = max(taker.beams.num_candidates for taker in takers if taker.beams)
    top = logprobs_NV.topk(min(most, logprobs_NV.shape[1]), -1)
    values_NC, ids_NC = top.values.cpu().numpy(), top.indices.cpu().numpy()
    start = 0
    for beams, members in groupby(takers, key=lambda taker: taker.beams):
        assert beams is not None
        rows = slice(start, start + len(list(members)))
        start = rows.stop
        yield beams, beams.grow(_candidates(beams, values_NC[rows], ids_NC[rows], logits_NV[rows]))


def _candidates(beams: Beams, values_BC: np.ndarray, ids_BC: np.ndarray, logits_BV: Tensor) -> list[Branch]:
    """The likeliest continuations of all members together, sums in float32 as transformers makes them."""
    totals_BC = values_BC + np.array(beams.totals, dtype=np.float32)[:, None]
    order = np.argsort(-totals_BC, axis=None, kind="stable")[: beams.num_candidates]
    parents, columns = np.unravel_index(order, totals_BC.shape)
    tokens = ids_BC[parents, columns].tolist()
    scores: list[TokenScore | None] = [None] * len(tokens)
    if beams.params.logprobs is not None:
        scores = list(token_scores(logits_BV[torch.from_numpy(parents)], tokens, beams.params.logprobs))
    branches = map(Branch, parents.tolist(), tokens, totals_BC[parents, columns].tolist(), scores)
    return [branch for branch in branches if branch.total > -np.inf]
