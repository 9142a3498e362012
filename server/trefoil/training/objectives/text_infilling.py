"""Give back a whole text of which spans are hidden (BART's objective; Lewis et al., arXiv 1910.13461, section 2.2).

    source: the text, one mask in the place of each span, however long        target: the text

Spans are Poisson(`span_len`) tokens long, `density` of all tokens together (section 5: three in ten). One of no tokens
puts a mask between two: so the model must also learn how many are missing. The loss is that of every text:
`causal_lm`, over the target, given the source.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trefoil.training.examples import Example, Window
from trefoil.training.loop import Loss
from trefoil.training.objectives.causal_lm import causal_lm
from trefoil_models.checkpoint import Model


@dataclass(frozen=True, slots=True)
class TextInfilling:
    """The objective for one tokenizer, which puts `before` and `after` around a text; anew at every use."""

    mask_id: int
    start_id: int
    eos_id: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    density: float = 0.3
    span_len: float = 3.0

    def __call__(self, model: Model, windows: Sequence[Window]) -> Loss:
        return causal_lm(model, [self.infill(window.ids) for window in windows])

    def infill(self, ids: Sequence[int]) -> Example:
        """What is hidden follows from torch's random state. The source is no longer than the framed text."""
        num_gone = min(max(round(len(ids) * self.density), 1), len(ids))
        lens = sorted(span_lens(num_gone, self.span_len), reverse=True)[:num_gone]  # only empty ones can be too many
        slots: list[int] = torch.randint(len(ids) - num_gone + 1, (len(lens),)).tolist()
        source, at, num_kept = [*self.before], 0, 0
        for slot, span_len in sorted(zip(slots, lens, strict=True)):
            source += [*ids[at : at + slot - num_kept], self.mask_id]
            at, num_kept = at + slot - num_kept + span_len, slot
        target = (self.start_id, *self.before, *ids, self.eos_id)
        return Example(target, (False, *[True] * (len(target) - 1)), (*source, *ids[at:], *self.after))


def span_lens(total: int, mean: float) -> list[int]:
    """Poisson numbers until they make up the total, the last cut to it."""
    lens: list[int] = []
    rate = torch.tensor(mean)
    missing = total
    while missing:
        lens.append(min(int(torch.poisson(rate)), missing))
        missing -= lens[-1]
    return lens
