"""The trained weights as they were before the job, put back while the reference is asked.

Of an adapter that is a small copy, beside the one base; of a whole model, a second one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from trefoil_models.checkpoint import Model


class Origin:
    """Made before the first step, and before anything saved is read back."""

    def __init__(self, model: Model) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._first = [(parameter, parameter.detach().clone()) for parameter in trained]

    @contextmanager
    def back(self) -> Iterator[None]:
        """The model is what it was."""
        now = [parameter.data for parameter, _ in self._first]
        for parameter, first in self._first:
            parameter.data = first
        try:
            yield
        finally:
            for (parameter, _), data in zip(self._first, now, strict=True):
                parameter.data = data
