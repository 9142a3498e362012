"""What the next step does, and what came of it.

One token budget a step serves decodes and prompt chunks together, in order of priority, then arrival. A sequence gets
pages for its whole prompt when it is admitted and one more whenever it grows into it; when none is left the last in
order is pre-empted: it gives its pages back and will compute its ids again.
"""

import bisect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from trefoil.engine.pages import PagePool, page_name
from trefoil.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows `start` to `end` of a sequence; `takers` choose a token from the last row."""

    sequence: Sequence
    start: int
    end: int
    takers: tuple[Sequence, ...]

    @property
    def num_rows(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: rows to compute, then pages to copy (source, target)."""

    chunks: list[Chunk]
    copies: list[tuple[int, int]]


@dataclass(slots=True)
class Totals:
    """Running totals since the start."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


@dataclass(slots=True)
class Scheduler:
    """Waiting and running sequences over one page pool."""

    pool: PagePool
    max_num_seqs: int
    max_num_batched_tokens: int
    shares_prefixes: bool
    waiting: list[Sequence] = field(default_factory=list)
    running: list[Sequence] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    clock: Callable[[], float] = time.monotonic

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its siblings follow once its prompt is computed."""
        bisect.insort(self.waiting, sequence, key=lambda s: s.order)

    def plan(self) -> Plan:
        """Choose rows for one step and give their sequences pages."""
        plan = Plan([], [])
        budget = self.max_num_batched_tokens
        for sequence in list(self.running):
            if sequence in self.running:
                self._grow(sequence)
        # single rows first: a long prompt never holds up those who already stream
        for sequence in sorted(self.running, key=lambda s: s.num_left > 1):
            if budget:
                budget -= self._schedule(sequence, budget, plan)
        while budget and self.waiting and len(self.running) < self.max_num_seqs and self._admit(self.waiting[0]):
            sequence = self.waiting.pop(0)
            bisect.insort(self.running, sequence, key=lambda s: s.order)
            budget -= self._schedule(sequence, budget, plan)
        return plan

    def commit(self, plan: Plan) -> None:
        """The plan's rows are computed."""
        for chunk in plan.chunks:
            chunk.sequence.computed = chunk.end

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and give its pages back; its waiting siblings go on without it."""
        for queue in (self.running, self.waiting):
            if sequence in queue:
                queue.remove(sequence)
        self.pool.give_back(sequence.pages)
        sequence.pages = []
        self._release_siblings(sequence)

    def sequences(self) -> Iterator[Sequence]:
        """Everyone here, siblings that still wait for a prompt included."""
        for sequence in (*self.running, *self.waiting):
            yield sequence
            yield from sequence.siblings

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + sum(len(s.siblings) for s in (*self.running, *self.waiting))

    def check_books(self) -> None:
        """Raise AssertionError unless pages and sequences agree; an idle engine holds no page."""
        self.pool.check_books(sequence.pages for sequence in self.sequences())
        for sequence in self.running:
            assert len(sequence.pages) >= self.pool.pages_for(sequence.computed), "computed rows without a page"
        assert not any(sequence.pages for sequence in self.waiting), "a waiting sequence holds pages"

    def _grow(self, sequence: Sequence) -> None:
        """Pages for all ids of a running sequence, pre-empting from the back, itself where it is the last."""
        while (missing := self.pool.pages_for(len(sequence.ids)) - len(sequence.pages)) > self.pool.num_free:
            last = self.running[-1]
            self._preempt(last)
            if last is sequence:
                return
        sequence.pages += self.pool.take(max(missing, 0))

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.give_back(sequence.pages)
        sequence.pages, sequence.computed = [], 0
        self.totals.preemptions += 1
        self.add(sequence)

    def _admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence shared pages for the prefix that is here and fresh ones for the rest, or nothing."""
        shared = self._shared_prefix(sequence)
        fresh = self.pool.pages_for(len(sequence.ids)) - len(shared)
        if fresh + self.pool.num_idle(shared) > self.pool.num_free:
            return False
        self.pool.share(shared)
        sequence.pages = shared + self.pool.take(fresh)
        sequence.computed = len(shared) * self.pool.page_size
        sequence.admitted_at = sequence.admitted_at or self.clock()
        if not sequence.num_outputs and not sequence.index:
            sequence.cached_len = sequence.computed
        self.totals.prefix_queries += len(sequence.ids)
        self.totals.prefix_hits += sequence.computed
        return True

    def _shared_prefix(self, sequence: Sequence) -> list[int]:
        """Full pages with this sequence's leading ids, always leaving the last row to be computed.

        Prompt scores need every row's hidden state, so such a sequence shares nothing until they are given.
        """
        if not self.shares_prefixes or sequence.wants_prompt_scores:
            return []
        self._name_pages(sequence, len(sequence.ids) - 1)
        return self.pool.find(sequence.hashes[: (len(sequence.ids) - 1) // self.pool.page_size])

    def _schedule(self, sequence: Sequence, budget: int, plan: Plan) -> int:
        """Add the sequence's next rows to the plan; how many they are."""
        end = min(len(sequence.ids), sequence.computed + budget)
        is_whole = end == len(sequence.ids)
        takers = (sequence, *self._fork(sequence, plan)) if is_whole and sequence.wants_tokens else ()
        plan.chunks.append(Chunk(sequence, sequence.computed, end, takers))
        if self.shares_prefixes:
            # found from this step on: a step writes every row's keys before any row reads them
            self._name_pages(sequence, end)
            for number in range(sequence.computed // self.pool.page_size, end // self.pool.page_size):
                self.pool.name(sequence.pages[number], sequence.hashes[number])
        return end - sequence.computed

    def _name_pages(self, sequence: Sequence, length: int) -> None:
        size = self.pool.page_size
        for number in range(len(sequence.hashes), length // size):
            before = sequence.hashes[-1] if sequence.hashes else sequence.salt
            sequence.hashes.append(page_name(before, sequence.ids[number * size : (number + 1) * size]))

    def _fork(self, sequence: Sequence, plan: Plan) -> list[Sequence]:
        """Siblings that start from this step's last row: full pages shared, the half-filled one copied."""
        forked = []
        num_full, rest = divmod(len(sequence.ids), self.pool.page_size)
        room = self.max_num_seqs - len(self.running)
        for sibling in sequence.siblings[: max(room, 0)]:
            if self.pool.num_free < bool(rest):
                break
            own = self.pool.take(bool(rest))
            self.pool.share(sequence.pages[:num_full])
            sibling.pages = sequence.pages[:num_full] + own
            plan.copies.extend((sequence.pages[num_full], page) for page in own)
            sibling.computed, sibling.cached_len = sequence.prompt_len, sequence.cached_len
            sibling.admitted_at = sequence.admitted_at
            bisect.insort(self.running, sibling, key=lambda s: s.order)
            forked.append(sibling)
        sequence.siblings = sequence.siblings[len(forked) :]
        self._release_siblings(sequence)
        return forked

    def _release_siblings(self, sequence: Sequence) -> None:
        for sibling in sequence.siblings:
            self.add(sibling)
        sequence.siblings = []
