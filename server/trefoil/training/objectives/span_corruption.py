"""Take spans out of a text and learn to give them back (Raffel et al., arXiv 1910.10683, sections 3.1.4 and 3.3.4).

    source: the text, each gap marked by the next sentinel        target: sentinel, what stood there, ..., last sentinel

Gaps are `density` of the tokens, `span_len` long on average, no two of them side by side, never at the beginning. The
loss is that of every text: `causal_lm`, over the target, given the source.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch

from trefoil.training.examples import Example, Window
from trefoil.training.loop import Loss
from trefoil.training.objectives.causal_lm import causal_lm
from trefoil_models.checkpoint import Model


@dataclass(frozen=True, slots=True)
class SpanCorruption:
    """The objective for one tokenizer; where the gaps are follows from torch's random state, anew at every use."""

    sentinels: tuple[int, ...]
    start_id: int
    eos_id: int
    density: float = 0.15
    span_len: float = 3.0

    def __call__(self, model: Model, windows: Sequence[Window]) -> Loss:
        rng = Random(int(torch.randint(2**31, ())))
        return causal_lm(model, [self.corrupt(window, rng) for window in windows])

    def corrupt(self, window: Window, rng: Random) -> Example:
        """One window with gaps."""
        return corrupted(
            window.ids,
            rng,
            sentinels=self.sentinels,
            start_id=self.start_id,
            eos_id=self.eos_id,
            density=self.density,
            span_len=self.span_len,
        )


def corrupted(
    ids: Sequence[int],
    rng: Random,
    *,
    sentinels: Sequence[int],
    start_id: int,
    eos_id: int,
    density: float = 0.15,
    span_len: float = 3.0,
) -> Example:
    """A text of at least two ids with gaps, from the first sentinel on; eos ends both sides."""
    source: list[int] = []
    target: list[int] = [start_id]
    kept, gaps = _cut(len(ids), rng, density=density, span_len=span_len, most_gaps=len(sentinels) - 1)
    at = 0
    for sentinel, num_kept, num_gone in zip(sentinels, kept, gaps, strict=False):
        source += [*ids[at : at + num_kept], sentinel]
        target += [sentinel, *ids[at + num_kept : at + num_kept + num_gone]]
        at += num_kept + num_gone
    target += [sentinels[len(gaps)], eos_id]
    return Example(tuple(target), (False, *[True] * (len(target) - 1)), (*source, eos_id))


def _cut(length: int, rng: Random, *, density: float, span_len: float, most_gaps: int) -> tuple[list[int], list[int]]:
    """Lengths of what stays and of the gaps after each, by turns."""
    assert length >= 2, "one id leaves nothing beside the gap"
    num_gone = min(max(round(length * density), 1), length - 1)
    num_gaps = min(max(round(num_gone / span_len), 1), num_gone, length - num_gone, most_gaps)
    return _parts(length - num_gone, num_gaps, rng), _parts(num_gone, num_gaps, rng)


def _parts(total: int, count: int, rng: Random) -> list[int]:
    """`total` as a sum of `count` positive numbers, every way as likely."""
    cuts = [0, *sorted(rng.sample(range(1, total), count - 1)), total]
    return [end - start for start, end in itertools.pairwise(cuts)]
