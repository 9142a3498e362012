"""Rotary positions in the half layout (Su et al., arXiv 2104.09864, eq. 34; pairs are i and i + R/2).

    (a, b) -> (a cos - b sin, b cos + a sin)

Only the first R of the D numbers of a head turn; the rest pass through. Computed in float32, cast back at the end.
"""

import torch
from torch import Tensor

from trefoil_kernels.cpu.library import has_side_by_side_heads, native_for


def rotary(x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Turn each head's first R = 2 * `cos_TR`.shape[1] numbers by the row's angles (both tables float32 [T, R/2])."""
    native = native_for(x_THD, cos_TR)
    if native is None or not has_side_by_side_heads(x_THD) or not cos_TR.is_contiguous() or not sin_TR.is_contiguous():
        return reference(x_THD, cos_TR, sin_TR)
    return native.rotary(x_THD, cos_TR, sin_TR)


def reference(x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """The formula in torch."""
    half = cos_TR.shape[1]
    cos_T1R, sin_T1R = cos_TR[:, None], sin_TR[:, None]
    first_THR, second_THR = x_THD[..., :half].float(), x_THD[..., half : 2 * half].float()
    turned = [first_THR * cos_T1R - second_THR * sin_T1R, second_THR * cos_T1R + first_THR * sin_T1R]
    turned_THR = torch.cat(turned, -1).to(x_THD.dtype)
    return turned_THR if 2 * half == x_THD.shape[-1] else torch.cat([turned_THR, x_THD[..., 2 * half :]], -1)
