"""Rows of a table by their numbers: out_t = table[id_t]."""

import torch.nn.functional as F
from torch import Tensor

from trefoil_kernels.cpu.library import native_for


def reference(ids_T: Tensor, table_VM: Tensor) -> Tensor:
    """torch's own."""
    return F.embedding(ids_T, table_VM)


def lookup(ids_T: Tensor, table_VM: Tensor) -> Tensor:
    """[T, M] for int64 ids; differentiable in the table. Raises IndexError on the CPU for an id it has not."""
    native = native_for(table_VM)
    if native is None or ids_T.dim() != 1 or not ids_T.is_contiguous() or not table_VM.is_contiguous():
        return reference(ids_T, table_VM)
    return native.rowwise.lookup(ids_T, table_VM)
