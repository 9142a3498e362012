"""Take spans out of a text and learn to give them back (Raffel et al., arXiv 1910.10683, sections 3.1.4 and 3.3.4).

    source: the text, each gap marked by the next sentinel        target: sentinel, what stood there, ..., last sentinel

Gaps are `density` of the tokens, `span_len` long on average, no two of them side by side, never at the beginning.
"""

import itertools
from collections.abc import Callable, Sequence
from random import Random

from torch import Tensor

from trefoil.training.loop import Loss
from trefoil.training.pairs import PairExample, target_logprobs
from trefoil_models.checkpoint import EncoderDecoder


def denoising_loss(target_logprobs_R: Tensor) -> Tensor:
    """-sum of log p over the targets' tokens; the loop divides by how many there were."""
    return -target_logprobs_R.sum()


def text_to_text(start_id: int) -> Callable[[EncoderDecoder, Sequence[PairExample]], Loss]:
    """The objective of inputs with targets, corrupted or not, for a decoder that begins with this id."""

    def objective(model: EncoderDecoder, examples: Sequence[PairExample]) -> Loss:
        logprobs_R = target_logprobs(model, examples, start_id=start_id)
        return Loss(denoising_loss(logprobs_R), len(logprobs_R))

    return objective


def corrupted(
    ids: Sequence[int],
    rng: Random,
    *,
    sentinels: Sequence[int],
    eos_id: int,
    density: float = 0.15,
    span_len: float = 3.0,
) -> PairExample:
    """A text of at least two ids with gaps; eos ends both sides."""
    source: list[int] = []
    target: list[int] = []
    kept, gaps = _cut(len(ids), rng, density=density, span_len=span_len, most_gaps=len(sentinels) - 1)
    at = 0
    for sentinel, num_kept, num_gone in zip(sentinels, kept, gaps, strict=False):
        source += [*ids[at : at + num_kept], sentinel]
        target += [sentinel, *ids[at + num_kept : at + num_kept + num_gone]]
        at += num_kept + num_gone
    return PairExample((*source, eos_id), (*target, sentinels[len(gaps)], eos_id))


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
