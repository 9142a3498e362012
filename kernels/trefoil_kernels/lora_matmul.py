"""The low-rank part of many adapters in one go: each row is multiplied by the matrices of its own adapter.

    y_t = (x_t A_s) B_s      s the slot of row t; a row of no slot (-1) gets zeros

All slots' matrices stand side by side, so a step costs two products however many adapters it mixes: what a row
takes from the slots of others is masked to zero in between, where it is only slots x rank wide.
"""

import torch
from torch import Tensor


def reference(x_TM: Tensor, down_MSR: Tensor, up_SRO: Tensor, slots_T: Tensor) -> Tensor:
    """Row by row."""
    out = x_TM.new_zeros(len(x_TM), up_SRO.shape[2])  # [T, O]
    for row, slot in enumerate(slots_T.tolist()):
        if slot >= 0:
            out[row] = x_TM[row] @ down_MSR[:, slot] @ up_SRO[slot]
    return out


def lora_matmul(x_TM: Tensor, down_MSR: Tensor, up_SRO: Tensor, slots_T: Tensor) -> Tensor:
    """[T, O] in x's dtype. `down_MSR` and `up_SRO` are contiguous; a smaller rank is padded with zeros."""
    num_slots, rank, _ = up_SRO.shape
    low_TSR = (x_TM @ down_MSR.flatten(1)).view(-1, num_slots, rank)
    is_own_TS = slots_T[:, None] == torch.arange(num_slots, device=slots_T.device)
    return low_TSR.mul_(is_own_TS[:, :, None]).flatten(1) @ up_SRO.flatten(0, 1)
