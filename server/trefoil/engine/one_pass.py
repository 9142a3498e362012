"""One forward for many texts: requests packed without padding under a token budget, then each asks its head.

Whoever has waited longest goes first. No pages: the pass itself answers its attention.
"""

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trefoil import wire
from trefoil.engine.encoder_tape import EncoderTape
from trefoil_models.attend import packed_rows
from trefoil_models.checkpoint import Model
from trefoil_models.pooling import Pooling

OF_TEXTS = frozenset({"class", "pair"})
"""Heads that say one thing of a whole text."""
OF_ROWS = frozenset({"hidden", "embed"})
"""What needs no head: the hidden rows, and their pooling."""


class OnePass:
    """Everything that one engine answers in one pass; `max_rows` is the budget, which one long text may exceed.

    `pad_id`: a decoder's class head reads the last row of another token than this one. `tape`: the model's pass.
    """

    def __init__(
        self,
        model: Model,
        pooling: Pooling,
        *,
        max_rows: int,
        max_model_len: int,
        pad_id: int | None = None,
        tape: EncoderTape | None = None,
    ) -> None:
        self._model, self._pooling, self._pad_id, self._tape = model, pooling, pad_id, tape
        self._max_rows, self._max_model_len = max_rows, max_model_len
        self._heads = model.heads
        self._waiting: deque[wire.Once] = deque()
        self.num_read = 0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    def submit(self, request: wire.Request) -> list[wire.Event]:
        """Queue a request; a refusal where it can never run."""
        if not isinstance(request, wire.Once):
            return [wire.Failed(request.id, "this model does not generate")]
        why = self._refusal(request)
        if why is not None:
            return [wire.Failed(request.id, why)]
        self._waiting.append(request)
        return []

    def abort(self, command: wire.Abort) -> None:
        """Forget a request that waits."""
        self._waiting = deque(request for request in self._waiting if request.id != command.id)

    def load_adapter(self, command: wire.LoadAdapter) -> None:
        """No text is scored with an adapter; nobody can ask for one here."""

    def unload_adapter(self, command: wire.UnloadAdapter) -> None:
        """There is none."""

    def step(self) -> list[wire.Event]:
        """Answer those who have waited longest."""
        return list(self._answers(self._take()))

    def stats(self) -> wire.Stats:
        """What waits, and the tokens read so far."""
        return wire.Stats(waiting=len(self._waiting), prompt_tokens=self.num_read)

    def check_books(self) -> None:
        """Nothing is held between two steps."""

    def _refusal(self, request: wire.Once) -> str | None:
        if request.head not in self._heads and request.head not in OF_ROWS:
            return f"this model has no head {request.head!r}"
        if not 0 < len(request.ids) <= self._max_model_len:
            return f"{len(request.ids)} tokens do not fit {self._max_model_len}"
        if len(request.type_ids) not in (0, len(request.ids)):
            return f"{len(request.type_ids)} type ids for {len(request.ids)} tokens"
        vocab_size = self._model.config.vocab_size
        if not _are_below(vocab_size, [*request.ids, *request.targets]):
            return f"token ids must be below {vocab_size}"
        if request.head == "mask" and not (request.rows and _are_below(len(request.ids), request.rows)):
            return f"rows must be among the {len(request.ids)} of the text"
        if request.head == "mask" and not (request.targets or 1 <= request.top_k <= vocab_size):
            return f"top_k must be from 1 to {vocab_size}"
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
        hidden_TM = self._hidden(requests)
        texts_LM = torch.split(hidden_TM, [len(request.ids) for request in requests])
        for head in dict.fromkeys(request.head for request in requests):
            members = [n for n, request in enumerate(requests) if request.head == head]
            asked = [self._rows_asked(requests[n], texts_LM[n]) for n in members]
            parts = asked if head in OF_ROWS else self._scored(head, asked)
            for n, part in zip(members, parts, strict=True):
                yield self._answer(requests[n], part.float())

    def _scored(self, head: str, asked: Sequence[Tensor]) -> Sequence[Tensor]:
        """What the head says of these rows, text by text."""
        return torch.split(self._heads[head](torch.cat(list(asked))), [len(rows) for rows in asked])

    def _hidden(self, requests: list[wire.Once]) -> Tensor:
        """The rows of all texts, valid until the next pass."""
        if self._tape is not None and sum(len(request.ids) for request in requests) <= self._tape.max_rows:
            return self._tape.hidden(requests)
        device = next(self._model.parameters()).device
        types = [request.type_ids or [0] * len(request.ids) for request in requests]
        return self._model(*packed_rows([request.ids for request in requests], device, types=types))

    def _rows_asked(self, request: wire.Once, text_LM: Tensor) -> Tensor:
        """The rows of a text that its head reads."""
        if request.head == "mask":
            return text_LM[request.rows]
        if request.head not in OF_TEXTS:
            return text_LM
        row = 0 if self._model.kind == "encoder" else _last_row(request.ids, self._pad_id)
        return text_LM[row : row + 1]

    def _answer(self, request: wire.Once, scores: Tensor) -> wire.Scores:
        if request.head == "mask":
            return _token_scores(request, scores.log_softmax(-1))
        if request.head == "embed":
            return _scores(request.id, self._pooling(scores))
        return _scores(request.id, scores[0] if request.head in OF_TEXTS else scores)


def _are_below(limit: int, numbers: list[int]) -> bool:
    return min(numbers) >= 0 and max(numbers) < limit


def _last_row(ids: list[int], pad_id: int | None) -> int:
    """The last row of another token than padding; the very last where there is no padding or nothing else."""
    return next((row for row in reversed(range(len(ids))) if ids[row] != pad_id), len(ids) - 1)


def _token_scores(request: wire.Once, logprobs_RV: Tensor) -> wire.Scores:
    if request.targets:
        return _scores(request.id, logprobs_RV[:, request.targets])
    best = logprobs_RV.topk(request.top_k)
    return _scores(request.id, best.values, best.indices.tolist())


def _scores(request_id: str, numbers: Tensor, ids: list[list[int]] | None = None) -> wire.Scores:
    return wire.Scores(request_id, tuple(numbers.shape), numbers.cpu().contiguous().numpy().tobytes(), ids or [])
