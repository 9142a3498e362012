"""One forward for many texts: requests packed without padding under a token budget, then each asks its head.

Whoever has waited longest goes first. No pages: the pass itself answers its attention.
"""

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from trefoil import wire
from trefoil_models.attend import packed_rows
from trefoil_models.checkpoint import Model

OF_TEXTS = frozenset({"class", "pair"})
"""Heads that say one thing of a whole text, from its first row."""


class OnePass:
    """Everything that one engine answers in one pass; `max_rows` is the budget, which one long text may exceed."""

    def __init__(self, model: Model, *, max_rows: int, max_model_len: int) -> None:
        self._model, self._max_rows, self._max_model_len = model, max_rows, max_model_len
        self._heads = {"hidden": lambda x_RM: x_RM, **model.heads}
        self._waiting: deque[wire.Once] = deque()
        self.num_read = 0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    def submit(self, request: wire.Request) -> list[wire.Event]:
        """Queue a request; a refusal where it can never run."""
        why = self._refusal(request)
        if why is not None:
            return [wire.Failed(request.id, why)]
        assert isinstance(request, wire.Once)
        self._waiting.append(request)
        return []

    def abort(self, command: wire.Abort) -> None:
        """Forget a request that waits."""
        self._waiting = deque(request for request in self._waiting if request.id != command.id)

    def step(self) -> list[wire.Event]:
        """Answer those who have waited longest."""
        return list(self._answers(self._take()))

    def stats(self) -> wire.Stats:
        """What waits, and the tokens read so far."""
        return wire.Stats(waiting=len(self._waiting), prompt_tokens=self.num_read)

    def check_books(self) -> None:
        """Nothing is held between two steps."""

    def _refusal(self, request: wire.Request) -> str | None:
        if not isinstance(request, wire.Once):
            return "this model does not generate"
        if request.head not in self._heads:
            return f"this model has no head {request.head!r}"
        if not 0 < len(request.ids) <= self._max_model_len:
            return f"{len(request.ids)} tokens do not fit {self._max_model_len}"
        if len(request.type_ids) not in (0, len(request.ids)):
            return f"{len(request.type_ids)} type ids for {len(request.ids)} tokens"
        vocab_size = self._model.config.vocab_size
        if max(request.ids) >= vocab_size or min(request.ids) < 0:
            return f"token ids must be below {vocab_size}"
        return None

    def _take(self) -> list[wire.Once]:
        """The next requests in order of arrival, as many as the budget holds."""
        taken: list[wire.Once] = []
        rows = 0
        while self._waiting and (not taken or rows + len(self._waiting[0].ids) <= self._max_rows):
            taken.append(self._waiting.popleft())
            rows += len(taken[-1].ids)
        self.num_read += rows
        return taken

    @torch.inference_mode()
    def _answers(self, requests: list[wire.Once]) -> Iterator[wire.Event]:
        device = next(self._model.parameters()).device
        types = [request.type_ids or [0] * len(request.ids) for request in requests]
        rows, attend = packed_rows([request.ids for request in requests], device, types=types)
        hidden_TM = self._model(rows, attend)
        starts = attend.packing.starts
        for head in sorted({request.head for request in requests}):
            members = [n for n, request in enumerate(requests) if request.head == head]
            spans = [range(starts[n], starts[n] + 1 if head in OF_TEXTS else starts[n + 1]) for n in members]
            at_R = torch.tensor([row for span in spans for row in span], device=device)
            parts = self._heads[head](hidden_TM[at_R]).float().cpu().split([len(span) for span in spans])
            for n, part in zip(members, parts, strict=True):
                yield _scores(requests[n].id, part[0] if head in OF_TEXTS else part)


def _scores(request_id: str, numbers: Tensor) -> wire.Scores:
    return wire.Scores(request_id, tuple(numbers.shape), numbers.contiguous().numpy().tobytes())
