"""Batches of one shape, as a GPU wants them for a small model: texts padded to one length, and attention among those.

The model is the one that is served; only what answers its attention differs. Nothing here asks the device for a number,
so the processor can prepare one step while the device computes another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from trefoil.training.examples import Example
from trefoil_kernels.bias import Bias
from trefoil_kernels.masks import Mask
from trefoil_kernels.rotary import Turn, rotary
from trefoil_models.attend import Rows
from trefoil_models.checkpoint import EncoderDecoder


@dataclass(frozen=True, slots=True)
class PaddedAttend:
    """The attention of N texts and of what is made of them; `is_text_NS`: where the encoder's rows are no padding."""

    is_text_NS: Tensor
    _added: dict[tuple[Mask, int], Tensor] = field(default_factory=dict)
    _remembered: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def own(
        self,
        site: int,
        q_THD: Tensor,
        k_TGD: Tensor,
        v_TGD: Tensor,
        *,
        mask: Mask,
        scale: float,
        bias: Bias | None = None,
        turn: Turn | None = None,
    ) -> Tensor:
        if turn is not None:
            q_THD, k_TGD = rotary(q_THD, turn), rotary(k_TGD, turn)
        length = len(q_THD) // len(self.is_text_NS)
        if (mask, length) not in self._added:
            self._added[mask, length] = self._to_add(mask, length, bias)
        return self._attention(q_THD, k_TGD, v_TGD, scale, self._added[mask, length])

    def remember(self, site: int, k_KGD: Tensor, v_KGD: Tensor) -> None:
        self._remembered[site] = k_KGD, v_KGD

    def recall(self, site: int, q_THD: Tensor, *, scale: float) -> Tensor:
        return self._attention(q_THD, *self._remembered[site], scale, _closed(self.is_text_NS[:, None, None, :]))

    def _to_add(self, mask: Mask, length: int, bias: Bias | None) -> Tensor:
        """Bias and mask of one side, the same at all its sites: float32 [N or 1, H or 1, length, length].

        A causal row sees no padding but where it is padding itself.
        """
        places = torch.arange(length, device=self.is_text_NS.device)
        seen = mask.seen(places, places)[None, None]
        if not mask.is_causal:
            seen = seen & self.is_text_NS[:, None, None, :]
        return _closed(seen) if bias is None else _closed(seen) + bias.values(places, places)

    def _attention(self, q_THD: Tensor, k_KHD: Tensor, v_KHD: Tensor, scale: float, added: Tensor) -> Tensor:
        q_NHTD, k_NHKD, v_NHKD = (
            x.view(len(self.is_text_NS), -1, *x.shape[1:]).transpose(1, 2) for x in (q_THD, k_KHD, v_KHD)
        )
        scores_NHTK = (q_NHTD @ k_NHKD.transpose(2, 3)).float() * scale + added
        return (scores_NHTK.softmax(-1).to(v_NHKD.dtype) @ v_NHKD).transpose(1, 2).reshape(q_THD.shape)


def _closed(seen: Tensor) -> Tensor:
    """Minus infinity, nearly, where nothing may be seen."""
    return torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, -1e9)


@dataclass(frozen=True, slots=True)
class Table:
    """Examples as padded rows: what is read [E, S], what is said [E, L] with the start token first. int16 is enough."""

    read_ES: Tensor
    said_EL: Tensor

    def __len__(self) -> int:
        return len(self.read_ES)

    def to(self, device: torch.device | str) -> "Table":
        """The same there."""
        return Table(self.read_ES.to(device), self.said_EL.to(device))

    def draw(self, count: int) -> "Table":
        """Some of the rows, by chance."""
        picked = torch.randint(len(self), (count,), device=self.read_ES.device)
        return Table(self.read_ES[picked], self.said_EL[picked])


def tabulate(examples: Sequence[Example], *, pad_id: int, longest: tuple[int, int]) -> Table:
    """Those examples that fit into `longest` ids on each side."""
    most_read, most_said = longest
    fit = [one for one in examples if len(one.source) <= most_read and len(one.ids) <= most_said]
    read = [[*one.source, *[pad_id] * (most_read - len(one.source))] for one in fit]
    said = [[*one.ids, *[pad_id] * (most_said - len(one.ids))] for one in fit]
    return Table(torch.tensor(read, dtype=torch.int16), torch.tensor(said, dtype=torch.int16))


def join(tables: Sequence[Table]) -> Table:
    """All rows of tables of one shape."""
    return Table(torch.cat([one.read_ES for one in tables]), torch.cat([one.said_EL for one in tables]))


def pair_loss(model: EncoderDecoder, table: Table, *, pad_id: int) -> Tensor:
    """The mean of -log p over all that is said after the start token, padding aside."""
    read_NS, said_NL = table.read_ES.long(), table.said_EL.long()
    attend = PaddedAttend(read_NS != pad_id)
    model.encode(rows_of(read_NS), attend, attend)
    hidden_TM = model(rows_of(said_NL[:, :-1]), attend)
    return F.cross_entropy(model.lm_head.logits(hidden_TM).float(), said_NL[:, 1:].flatten(), ignore_index=pad_id)


@torch.no_grad()
def greedy(
    model: EncoderDecoder, read_NS: Tensor, *, start_id: int, eos_id: int, pad_id: int, most: int
) -> list[list[int]]:
    """The likeliest token after each other until all texts have ended: ids without start and end."""
    attend = PaddedAttend(read_NS != pad_id)
    model.encode(rows_of(read_NS), attend, attend)
    said_NL = torch.full_like(read_NS[:, :1], start_id)
    for _ in range(most):
        hidden_NLM = model(rows_of(said_NL), attend).unflatten(0, said_NL.shape)
        said_NL = torch.cat([said_NL, model.lm_head.logits(hidden_NLM[:, -1]).argmax(-1, keepdim=True)], 1)
        if (said_NL == eos_id).any(1).all():
            break
    told = [ids[1:] for ids in said_NL.tolist()]
    return [ids[: ids.index(eos_id)] if eos_id in ids else ids for ids in told]


def rows_of(ids_NS: Tensor) -> Rows:
    """All texts one after the other, padding included."""
    count, length = ids_NS.shape
    positions = torch.arange(length, device=ids_NS.device).repeat(count)
    return Rows(ids_NS.flatten(), positions, torch.full_like(positions, length))
