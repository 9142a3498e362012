"""Beam search: of all continuations of a request's beams, which go on and which are answers.

After transformers' rules, so that the ids are the same: of the likeliest candidates, twice as many as beams or more,
those that end are answers if they are among the first `beams`, the best of the others go on; an answer's score is
log p / length**length_penalty (Wu et al., arXiv 1609.08144, section 7, in the form everybody uses). Whose pages a
beam holds is the scheduler's business.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from trefoil.engine.sampler import adjust, is_adjusted, token_scores
from trefoil.engine.search import Beams, Branch
from trefoil.engine.sequence import Sequence
from trefoil.wire import TokenScore
from trefoil_kernels.cpu.library import native_for


def grow_all(logits_NV: Tensor, takers: Seq[Sequence], never: Tensor) -> Iterator[tuple[Beams[Sequence], list[Branch]]]:
    """Let every request's beams grow by one token; rows of a request stand together. No id of `never` is chosen."""
    if not takers:
        return
    searches = [beams for beams, _ in groupby(taker.beams for taker in takers) if beams]
    count = min(max(beams.num_candidates for beams in searches), logits_NV.shape[1])
    values_NC, ids_NC = (x.cpu().numpy() for x in _likeliest(logits_NV, takers, count, never))
    totals_N = np.array([total for beams in searches for total in beams.totals], dtype=np.float32)
    totals_NC = values_NC + totals_N[:, None]  # in float32, as transformers makes them
    start = 0
    for beams in searches:
        rows = slice(start, start + len(beams.totals))
        start = rows.stop
        yield beams, beams.grow(_candidates(beams, totals_NC[rows], ids_NC[rows], logits_NV[rows]))


def _likeliest(logits_NV: Tensor, takers: Seq[Sequence], count: int, never: Tensor) -> tuple[Tensor, Tensor]:
    """log p and ids of the `count` best tokens of each row, best first, [N, C] each."""
    if not any(map(is_adjusted, takers)) and (native := native_for(logits_NV)):
        return native.rowwise.likeliest(logits_NV, count, never)
    logprobs_NV = logits_NV.float().log_softmax(-1)
    logprobs_NV.index_fill_(1, never, -torch.inf)
    for logprobs_V, taker in zip(logprobs_NV, takers, strict=True):
        adjust(logprobs_V, taker)
    return logprobs_NV.topk(count, -1)


def _candidates(beams: Beams[Sequence], totals_BC: np.ndarray, ids_BC: np.ndarray, logits_BV: Tensor) -> list[Branch]:
    """The likeliest continuations of all members together."""
    order = np.argsort(-totals_BC, axis=None, kind="stable")[: beams.num_candidates]
    parents, tokens = (order // totals_BC.shape[1]).tolist(), ids_BC.ravel()[order].tolist()
    scores: list[TokenScore | None] = [None] * len(tokens)
    if beams.params.logprobs is not None:
        scores = list(token_scores(logits_BV[torch.tensor(parents)], tokens, beams.params.logprobs))
    branches = map(Branch, parents, tokens, totals_BC.ravel()[order].tolist(), scores)
    return [branch for branch in branches if branch.total > -np.inf]
