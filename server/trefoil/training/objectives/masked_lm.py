"""Predict hidden tokens from both sides (Devlin et al., arXiv 1810.04805, section 3.1), masked anew at every use.

Of the tokens 15 % are chosen; of these 80 % become the mask, 10 % another token, and 10 % stay as they are (RoBERTa's
dynamic masking, Liu et al., arXiv 1907.11692, section 4.1). A reading with labels names the rows to be chosen itself:
so whole names are hidden, as in ERNIE (Sun et al., arXiv 1904.09223).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from trefoil.training.examples import IGNORED, Reading
from trefoil.training.loop import Loss
from trefoil.training.reading import reading_rows
from trefoil_models.checkpoint import Model

MASKED, REPLACED = 0.8, 0.9
"""Below the first a chosen token is masked, below the second replaced, above it stays."""


@dataclass(frozen=True, slots=True)
class MaskedLM:
    """The objective for one tokenizer; special tokens are neither chosen nor put in another's place."""

    mask_id: int
    vocab_size: int
    special_ids: Collection[int]
    share: float = 0.15

    def __call__(self, model: Model, readings: Sequence[Reading]) -> Loss:
        """The loss of a pass; what is masked follows from torch's random state."""
        rows, attend = reading_rows(model, readings)
        ids_T, is_chosen_T = self.mask(rows.ids_T, _named(readings, rows.ids_T.device))
        hidden_TM: Tensor = model(replace(rows, ids_T=ids_T), attend)
        logits_RV = model.heads["mask"](hidden_TM[is_chosen_T]).float()
        labels_R = rows.ids_T[is_chosen_T]
        return Loss(F.cross_entropy(logits_RV, labels_R, reduction="sum"), len(labels_R))

    def mask(self, ids_T: Tensor, is_named_T: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The ids as the model sees them, and which were chosen to be predicted: at least one, where any can be.

        Where rows are named, they are the chosen ones.
        """
        special = torch.tensor(sorted(self.special_ids), device=ids_T.device)
        is_free_T = ~torch.isin(ids_T, special)
        chance_T, fate_T = torch.rand(2, len(ids_T), device=ids_T.device)
        chance_T = chance_T.masked_fill(~is_free_T, 1.0)
        is_chosen_T = is_free_T & ((chance_T < self.share) | (chance_T == chance_T.min()))
        is_chosen_T = is_chosen_T if is_named_T is None else is_free_T & is_named_T
        free = torch.tensor([i for i in range(self.vocab_size) if i not in self.special_ids], device=ids_T.device)
        others_T = free[torch.randint(len(free), ids_T.shape, device=ids_T.device)]
        seen_T = torch.where(is_chosen_T & (fate_T < REPLACED), others_T, ids_T)
        return seen_T.masked_fill(is_chosen_T & (fate_T < MASKED), self.mask_id), is_chosen_T


def _named(readings: Sequence[Reading], device: torch.device) -> Tensor | None:
    """Which rows the readings name; None where they name none."""
    if not any(one.labels for one in readings):
        return None
    labels = [label for one in readings for label in one.labels or [IGNORED] * len(one)]
    return torch.tensor(labels, device=device) != IGNORED
