"""From a plan to what the model takes: rows and a PagedAttend. All host-to-device copies of a step happen here.

The buffers are made once and keep their addresses, as captured graphs will need them. On the CPU the host's and the
device's buffer are the same memory.
"""

from collections.abc import Sequence as Seq
from dataclasses import replace
from itertools import accumulate, groupby

import numpy as np
import torch
from torch import Tensor

from trefoil.engine.paged_attend import PagedAttend, Sources
from trefoil.engine.scheduler import Chunk, Plan
from trefoil.engine.sequence import Sequence
from trefoil_kernels.packed_attention import Packing
from trefoil_kernels.page_write import Pages
from trefoil_kernels.paged_attention import PageTable
from trefoil_models.attend import Contexts, Rows, places


class Buffer:
    """An array of whole numbers filled on the host and read on the device."""

    def __init__(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.int64) -> None:
        host = torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")
        self._host = host
        self.fill = host.numpy()
        self._device = host if device.type == "cpu" else torch.zeros_like(host, device=device)

    def sent(self, *part: slice) -> Tensor:
        """The part on the device, after a copy that does not wait."""
        if self._device is not self._host:
            self._device[part].copy_(self._host[part], non_blocking=True)
        return self.part(*part)

    def part(self, *part: slice) -> Tensor:
        """The part on the device as it is."""
        return self._device[part]


class StepInputs:
    """The static buffers of one engine. `spare_page` is one that no sequence has."""

    def __init__(
        self,
        *,
        max_rows: int,
        max_sequences: int,
        max_pages: int,
        page_size: int,
        device: torch.device,
        max_source_pages: int = 0,
        spare_page: int = 0,
        reads_both_ways: bool = False,
    ) -> None:
        self._page_size, self._spare_page = page_size, spare_page
        self._is_sent = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._ids, self._positions, self._prompt_lens, self._slots = (Buffer((max_rows,), device) for _ in range(4))
        self._places = Buffer((max_rows, 2), device) if reads_both_ways else None
        self._device = device
        self._table, self._lens = Buffer((max_sequences, max_pages), device), Buffer((max_sequences,), device)
        self._source_table, self._source_lens = (
            Buffer((max_sequences, max_source_pages), device),
            Buffer((max_sequences,), device),
        )
        self._source_starts = Buffer((max_sequences + 1,), device, torch.int32)

    def build(self, plan: Plan, pages: Seq[Pages]) -> tuple[Rows, PagedAttend]:
        """Fill the buffers for a plan and send them."""
        row, widest = self._fill(plan)
        rows, sequences = slice(0, row), slice(0, len(plan.chunks))
        table = PageTable(
            self._table.sent(sequences, slice(0, widest)),
            self._lens.sent(sequences),
            tuple(chunk.end for chunk in plan.chunks),
        )
        packing = Packing(tuple(chunk.num_rows for chunk in plan.chunks))
        attend = PagedAttend(pages, self._slots.sent(rows), table, packing, self._sources(plan))
        own = Rows(self._ids.sent(rows), self._positions.sent(rows), self._prompt_lens.sent(rows))
        if self._places is None:
            return own, attend
        contexts = Contexts.of([chunk.num_context_rows for chunk in plan.chunks], packing, self._device)
        return replace(own, places_T2=self._places.sent(rows), contexts=contexts), attend

    def _sources(self, plan: Plan) -> Sources | None:
        """Where each input lies, where there are any; neighbours with the same, as beams have, ask together."""
        if not any(chunk.sequence.source for chunk in plan.chunks):
            return None
        groups = _with_equal_inputs(plan)
        self._fill_sources(groups)
        lens = tuple(len(chunks[0].sequence.source) for chunks in groups)
        num_rows = tuple(sum(chunk.num_rows for chunk in chunks) for chunks in groups)
        widest = max(len(chunks[0].sequence.source_pages) for chunks in groups)
        inputs = slice(0, len(lens))
        pages_NP = self._source_table.sent(inputs, slice(0, widest))
        table = PageTable(pages_NP, self._source_lens.sent(inputs), lens)
        return Sources(self._encoded_slots(plan.encodes), table, Packing(num_rows))

    def _encoded_slots(self, sequences: Seq[Sequence]) -> Tensor:
        """The slots that take the rows of these inputs, int64 [K]."""
        slots = [np.zeros(0, dtype=np.int64)]
        for sequence in sequences:
            at = np.arange(len(sequence.source))
            slots.append(
                np.array(sequence.source_pages)[at // self._page_size] * self._page_size + at % self._page_size
            )
        return torch.from_numpy(np.concatenate(slots)).to(self._device)

    def padded(self, size: int, pages: Seq[Pages]) -> tuple[Rows, PagedAttend]:
        """The parts of the buffers that `send_padded` fills, for `size` sequences of one row each.

        The table is at its full width, and its lengths are known on the device only.
        """
        rows = slice(0, size)
        widest = self._table.fill.shape[1]
        table = PageTable(self._table.part(rows), self._lens.part(rows), (widest * self._page_size,) * size)
        sources = self._padded_sources(size)
        attend = PagedAttend(pages, self._slots.part(rows), table, Packing((1,) * size), sources)
        places_T2 = None if self._places is None else self._places.part(rows)
        own = Rows(self._ids.part(rows), self._positions.part(rows), self._prompt_lens.part(rows), places_T2=places_T2)
        return own, attend

    def _padded_sources(self, size: int) -> Sources | None:
        """Where the inputs of so many sequences lie, and whose rows ask each; None for a decoder."""
        widest = self._source_table.fill.shape[1]
        if not widest:
            return None
        rows = slice(0, size)
        lens = (widest * self._page_size,) * size
        table = PageTable(self._source_table.part(rows), self._source_lens.part(rows), lens)
        packing = Packing.told((1,) * size, self._source_starts.part(slice(0, size + 1)))
        return Sources(self._encoded_slots([]), table, packing)

    def send_padded(self, plan: Plan, size: int, ids_N: Tensor | None = None) -> None:
        """Fill the buffers for a plan of one-row chunks and send them; rows beyond it lie in the last of all pages.

        `ids_N`: the chunks' ids, where only the device has them.
        """
        self._fill(plan)
        rest = slice(len(plan.chunks), size)
        for buffer, value in (
            (self._ids, 0),
            (self._positions, 0),
            (self._prompt_lens, 1),
            (self._slots, self._spare_page * self._page_size),
            (self._lens, 1),
        ):
            buffer.fill[rest] = value
        self._table.fill[rest, 0] = self._spare_page
        buffers = [self._ids, self._positions, self._prompt_lens, self._slots, self._lens, self._table]
        if self._source_table.fill.shape[1]:
            self._fill_padded_sources(plan, size)
            buffers += [self._source_table, self._source_lens]
            self._source_starts.sent(slice(0, size + 1))
        for buffer in buffers:
            buffer.sent(slice(0, size))
        if self._places is not None:
            self._places.fill[rest] = 0
            self._places.sent(slice(0, size))
        if ids_N is not None:
            self._ids.part(slice(0, len(ids_N))).copy_(ids_N)
        self._note_sent()

    def _fill_padded_sources(self, plan: Plan, size: int) -> None:
        """Each input and whose rows ask it; for the rows beyond them the page that no sequence has.

        On the CPU neighbours with the same input ask together, and the last places have no rows.
        """
        groups = _with_equal_inputs(plan) if self._device.type == "cpu" else [[chunk] for chunk in plan.chunks]
        self._fill_sources(groups)
        rest = slice(len(groups), size)
        self._source_table.fill[rest, 0] = self._spare_page
        self._source_lens.fill[rest] = 1
        num_rows = [*map(len, groups), *[1] * (size - len(plan.chunks))]
        ends = [*accumulate(num_rows), *[size] * (size - len(num_rows))]
        self._source_starts.fill[1 : size + 1] = ends

    def _fill_sources(self, groups: list[list[Chunk]]) -> None:
        """The input of each of these groups, of whose chunks all have the same."""
        for n, (chunk, *_) in enumerate(groups):
            self._source_table.fill[n, : len(chunk.sequence.source_pages)] = chunk.sequence.source_pages
            self._source_lens.fill[n] = len(chunk.sequence.source)

    def _fill(self, plan: Plan) -> tuple[int, int]:
        """Rows filled, and the most pages that a sequence has."""
        if self._is_sent is not None:
            self._is_sent.synchronize()  # the step before may not have read the buffers yet
        chunks, page_size = plan.chunks, self._page_size
        tables = [chunk.sequence.pages[: -(-chunk.end // page_size)] for chunk in chunks]
        for n, table in enumerate(tables):
            self._table.fill[n, : len(table)] = table
        self._lens.fill[: len(chunks)] = [chunk.end for chunk in chunks]
        num_rows = sum(chunk.num_rows for chunk in chunks)
        rows = slice(0, num_rows)
        # ids may be unknown here yet
        self._ids.fill[rows] = [id for chunk in chunks for id in chunk.sequence.ids[chunk.start : chunk.end] or [0]]
        if num_rows == len(chunks):
            self._fill_single_rows(chunks, rows)
        else:
            self._fill_all_rows(chunks, rows)
        if self._places is not None:
            self._fill_places(chunks, self._places.fill)
        return num_rows, max(map(len, tables), default=1)

    def _fill_single_rows(self, chunks: list[Chunk], rows: slice) -> None:
        """Where each chunk's one row stands and lies: for so few numbers lists are quicker than numpy."""
        size = self._page_size
        self._positions.fill[rows] = [chunk.start for chunk in chunks]
        self._prompt_lens.fill[rows] = [chunk.sequence.prompt_len for chunk in chunks]
        self._slots.fill[rows] = [
            chunk.sequence.pages[chunk.start // size] * size + chunk.start % size for chunk in chunks
        ]

    def _fill_all_rows(self, chunks: list[Chunk], rows: slice) -> None:
        """The same of chunks of any length."""
        owners_T = np.repeat(np.arange(len(chunks)), [chunk.num_rows for chunk in chunks])
        self._positions.fill[rows] = np.concatenate([np.arange(chunk.start, chunk.end) for chunk in chunks])
        self._prompt_lens.fill[rows] = np.array([chunk.sequence.prompt_len for chunk in chunks])[owners_T]
        pages_T, offsets_T = divmod(self._positions.fill[rows], self._page_size)
        self._slots.fill[rows] = self._table.fill[owners_T, pages_T] * self._page_size + offsets_T

    def _fill_places(self, chunks: list[Chunk], to_T2: np.ndarray) -> None:
        """Where the rows stand in contexts that are read both ways."""
        row = 0
        for chunk in chunks:
            if chunk.sequence.span is not None:
                to_T2[row : row + chunk.num_rows] = places(chunk.sequence.span, chunk.start, chunk.end)
            row += chunk.num_rows

    def _note_sent(self) -> None:
        if self._is_sent is not None:
            self._is_sent.record()


def _with_equal_inputs(plan: Plan) -> list[list[Chunk]]:
    """Neighbours with the same input, as beams have: they ask together, and its keys are read once."""
    return [list(chunks) for _, chunks in groupby(plan.chunks, key=lambda chunk: chunk.sequence.source_pages)]
