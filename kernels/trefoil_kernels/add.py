"""x + y of one shape, as residual streams grow."""

from torch import Tensor

from trefoil_kernels.cpu.library import native_for


def add(x_TM: Tensor, y_TM: Tensor) -> Tensor:
    """The sum; differentiable in both."""
    is_alike = x_TM.shape == y_TM.shape and x_TM.dtype == y_TM.dtype
    if is_alike and x_TM.is_contiguous() and y_TM.is_contiguous() and (native := native_for(x_TM, y_TM)):
        return native.rowwise.add(x_TM, y_TM)
    return x_TM + y_TM
