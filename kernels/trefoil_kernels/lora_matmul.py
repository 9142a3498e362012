"""The low-rank part of many adapters in one go: each row is changed by the matrices of its own adapter.

    y_t + (x_t A_s^T) B_s      s the slot of row t; a row of no slot (-1) stays as it is

On the CPU one call gathers the rows of each slot, and a row's result is the same to the bit whatever rows stand beside
it. Elsewhere all slots' matrices stand side by side and a step costs two products however many adapters it mixes: what
a row takes from the slots of others is masked to zero in between, where it is only slots x rank wide.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from trefoil_kernels.cpu.library import native_for
from trefoil_kernels.cpu.products import LORA_PANEL, Products
from trefoil_kernels.launch import with_whole_rows


def reference(y_TO: Tensor, x_TM: Tensor, down_SRM: Tensor, up_SRO: Tensor, slots_T: Tensor) -> Tensor:
    """Row by row."""
    out_TO = y_TO.clone()
    for row, slot in enumerate(slots_T.tolist()):
        if slot >= 0:
            out_TO[row] += x_TM[row] @ down_SRM[slot].T @ up_SRO[slot]
    return out_TO


class Slots(Protocol):
    """The matrices of all slots."""

    def add(self, y_TO: Tensor, x_TM: Tensor, slots_T: Tensor) -> Tensor:
        """y with each row's change; y itself may be changed. Inference only."""
        ...


def slots_of(down_SRM: Tensor, up_SRO: Tensor) -> Slots:
    """Every slot's matrices laid out for where they are; a smaller rank is padded with zeros."""
    native = native_for(down_SRM, up_SRO)
    if native is None:
        return SideBySide(down_SRM.contiguous(), up_SRO.contiguous())
    num_slots, rank, outs = up_SRO.shape
    up_SRO = F.pad(up_SRO, (0, -outs % LORA_PANEL))
    panels_SPRB = up_SRO.view(num_slots, rank, -1, LORA_PANEL).transpose(1, 2).contiguous()
    return InPanels(native.products, down_SRM.contiguous(), panels_SPRB)


@dataclass(frozen=True, slots=True, eq=False)
class InPanels:
    """As the native library reads them."""

    products: Products
    down_SRM: Tensor
    up_SPRB: Tensor

    def add(self, y_TO: Tensor, x_TM: Tensor, slots_T: Tensor) -> Tensor:
        y_TO = y_TO.contiguous()
        self.products.add_lora(y_TO, with_whole_rows(x_TM), self.down_SRM, self.up_SPRB, slots_T)
        return y_TO


@dataclass(frozen=True, slots=True, eq=False)
class SideBySide:
    """As two wide products read them."""

    down_SRM: Tensor
    up_SRO: Tensor

    def add(self, y_TO: Tensor, x_TM: Tensor, slots_T: Tensor) -> Tensor:
        num_slots, rank, _ = self.up_SRO.shape
        low_TSR = (x_TM @ self.down_SRM.flatten(0, 1).T).view(-1, num_slots, rank)
        is_own_TS = slots_T[:, None] == torch.arange(num_slots, device=slots_T.device)
        return y_TO + low_TSR.mul_(is_own_TS[:, :, None]).flatten(1) @ self.up_SRO.flatten(0, 1)
