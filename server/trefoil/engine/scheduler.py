"""What the next step does, and what came of it.

One token budget a step serves decodes, prompt chunks and inputs to encode together, in order of priority, then arrival.
A sequence gets pages for its whole prompt when it is admitted and one more whenever it grows into it; when none is left
the last in order is pre-empted: it gives its pages back and will compute its ids again. The beams of a search come and
go together, and each waits with its last row until all can choose.
"""

import bisect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from trefoil.engine.pages import PagePool
from trefoil.engine.search import Beams, Branch
from trefoil.engine.sequence import Sequence
from trefoil.engine.sequence_pages import SequencePages


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

    @property
    def num_context_rows(self) -> int:
        """How many of its first rows see each other both ways."""
        span = self.sequence.span
        return 0 if span is None else max(span.context - self.start, 0)


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: pages to copy (source, target) first, inputs to encode, rows to compute, then more pages to copy."""

    chunks: list[Chunk]
    copies: list[tuple[int, int]]
    encodes: list[Sequence] = field(default_factory=list)
    first_copies: list[tuple[int, int]] = field(default_factory=list)


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
    pages: SequencePages = field(init=False)

    def __post_init__(self) -> None:
        self.pages = SequencePages(self.pool, shares=self.shares_prefixes)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its siblings follow once its prompt is computed."""
        bisect.insort(self.waiting, sequence, key=lambda s: s.order)

    def plan(self) -> Plan:
        """Choose rows for one step and give their sequences pages."""
        plan = Plan([], [])
        budget = self.max_num_batched_tokens
        at = 0
        while at < len(self.running):  # pre-empting shortens it from the back
            self._grow(self.running[at])
            at += 1
        for sequence in self.running:
            plan.first_copies.extend([sequence.copied] if sequence.copied else [])
            sequence.copied = None
        # single rows first: a long prompt never holds up those who already stream
        for sequence in sorted(self.running, key=lambda s: s.num_left > 1):
            budget -= self._schedule(sequence, budget, plan)
        while budget and (members := self._admit(budget, plan)):
            budget = max(budget - self._encode(members[0], plan), 1)
            for sequence in members:
                budget -= self._schedule(sequence, budget, plan)
        return plan

    def plan_ahead(self, plan: Plan) -> Plan | None:
        """The step after one that still computes: a row more of each sequence that its token will not end.

        None where another step may be due, for one who waits or for lack of pages; `name` is due once ids are known.
        """
        going = [chunk.sequence for chunk in plan.chunks if chunk.sequence.pages]
        lasting = [sequence for sequence in going if sequence.num_outputs + 1 < sequence.params.max_tokens]
        if not lasting or len(going) < len(self.running):
            return None
        if self.waiting and self.num_seats - len(going) + len(lasting) < self.max_num_seqs:
            return None
        if not self.pages.extend(lasting):
            return None
        return Plan(
            [Chunk(sequence, sequence.computed, sequence.computed + 1, (sequence,)) for sequence in lasting], []
        )

    def name(self, plan: Plan) -> None:
        """The ids of a step that was planned ahead are known."""
        for chunk in plan.chunks:
            if chunk.sequence.pages:
                self.pages.name(chunk.sequence, chunk.start, chunk.end)

    def commit(self, plan: Plan) -> None:
        """The plan's rows are computed."""
        for chunk in plan.chunks:
            chunk.sequence.computed = chunk.end

    def branch(self, beams: Beams[Sequence], branches: list[Branch]) -> None:
        """Go on with these continuations of a search's beams.

        A beam goes on as the first of its own; the others are forked from it and hold its pages until they write.
        """
        before, beams.members = beams.members, []
        gone = dict(enumerate(before))
        for branch in branches:
            parent = before[branch.parent]
            beams.members.append(parent if gone.pop(branch.parent, None) else self._forked(parent))
        for index, (member, branch) in enumerate(zip(beams.members, branches, strict=True)):
            member.index = index
            member.ids.append(branch.token)
        for parent in gone.values():
            self.pages.give_back(parent)
        first = self.running.index(before[0])  # the others follow it there
        self.running[first : first + len(before)] = beams.members

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and give its pages back; its waiting siblings go on without it."""
        for queue in (self.running, self.waiting):
            if sequence in queue:
                queue.remove(sequence)
        self.pages.give_back(sequence)
        self._release_siblings(sequence)

    def sequences(self) -> Iterator[Sequence]:
        """Everyone here, siblings that still wait for a prompt included."""
        for sequence in (*self.running, *self.waiting):
            yield sequence
            yield from sequence.siblings

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + sum(len(s.siblings) for s in (*self.running, *self.waiting))

    @property
    def num_seats(self) -> int:
        """How many sequences run, counting for a search all the beams it may come to."""
        searches = {sequence.beams for sequence in self.running if sequence.beams}
        return sum(s.beams is None for s in self.running) + sum(beams.width for beams in searches)

    def check_books(self) -> None:
        """Raise AssertionError unless pages and sequences agree; an idle engine holds no page."""
        held = [pages for sequence in self.sequences() for pages in (sequence.pages, sequence.source_pages)]
        self.pool.check_books(held)
        for sequence in self.running:
            assert len(sequence.pages) >= self.pool.pages_for(sequence.computed), "computed rows without a page"
            source_len = self.pool.pages_for(len(sequence.source))
            assert len(sequence.source_pages) == source_len, "an input without its pages"

    def _grow(self, sequence: Sequence) -> None:
        """Room for the rows to come, pre-empting from the back, itself where it is the last."""
        while self.pages.missing(sequence) > self.pool.num_free:
            self._preempt(self.running[-1])
            if sequence not in self.running:
                return
        self.pages.grow(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        for member in _together(sequence):
            self.running.remove(member)
            self.pages.give_back(member)
            self.add(member)
        self.totals.preemptions += 1

    def _admit(self, budget: int, plan: Plan) -> list[Sequence]:
        """The next who waits, with its beams, where there are seats and pages and its input fits what is left."""
        members = _together(self.waiting[0]) if self.waiting else []
        if not members or self.num_seats + _seats(members[0]) > self.max_num_seqs:
            return []
        # the first input of a step may exceed the budget, or a long one would wait for ever
        if plan.encodes and len(members[0].source) > budget and not self.pages.has_source(members[0]):
            return []
        if not self.pages.admit(members):
            return []
        for sequence in members:
            self.waiting.remove(sequence)
            bisect.insort(self.running, sequence, key=lambda s: s.order)
            self._count(sequence)
        return members

    def _count(self, sequence: Sequence) -> None:
        sequence.admitted_at = sequence.admitted_at or self.clock()
        if not sequence.num_outputs and not sequence.index:
            sequence.cached_len = sequence.computed
        self.totals.prefix_queries += len(sequence.ids)
        self.totals.prefix_hits += sequence.computed

    def _encode(self, sequence: Sequence, plan: Plan) -> int:
        """Add an input that nobody encoded to the plan; how many rows it has."""
        if not sequence.source or sequence.is_encoded:
            return 0
        sequence.is_encoded = True
        plan.encodes.append(sequence)
        return len(sequence.source)

    def _schedule(self, sequence: Sequence, budget: int, plan: Plan) -> int:
        """Add the sequence's next rows to the plan; how many they are."""
        end = sequence.computed + self._turn(sequence, budget, plan)
        if end == sequence.computed:
            return 0
        is_whole = end == len(sequence.ids)
        takers = (sequence, *self._fork(sequence, plan)) if is_whole and sequence.wants_tokens else ()
        plan.chunks.append(Chunk(sequence, sequence.computed, end, takers))
        self.pages.name(sequence, sequence.computed, end)
        return end - sequence.computed

    def _turn(self, sequence: Sequence, budget: int, plan: Plan) -> int:
        """How many rows the sequence may compute now; a context that is read both ways at once or not yet."""
        turn, span = self._turn_within(sequence, budget, plan), sequence.span
        return 0 if span is not None and sequence.computed + turn < span.context else turn

    def _turn_within(self, sequence: Sequence, budget: int, plan: Plan) -> int:
        beams = sequence.beams
        if beams is None or len(beams.members) == 1:
            return min(budget, sequence.num_left)
        if beams.is_level:
            goes_on = bool(plan.chunks) and plan.chunks[-1].sequence.beams is beams
            return int(goes_on or (sequence is beams.members[0] and len(beams.members) <= budget))
        first = beams.members[0]
        if sequence is not first and first.computed < first.prompt_len // self.pool.page_size * self.pool.page_size:
            return 0
        return min(budget, sequence.num_left - 1)

    def _fork(self, sequence: Sequence, plan: Plan) -> list[Sequence]:
        """Siblings that start from this step's last row."""
        if not sequence.siblings:
            return []
        forked: list[Sequence] = []
        room = self.max_num_seqs - self.num_seats
        for sibling in sequence.siblings[: max(room, 0)]:
            copies = self.pages.fork(sequence, sibling)
            if copies is None:
                break
            plan.copies.extend(copies)
            sibling.admitted_at = sequence.admitted_at
            bisect.insort(self.running, sibling, key=lambda s: s.order)
            forked.append(sibling)
        sequence.siblings = sequence.siblings[len(forked) :]
        self._release_siblings(sequence)
        return forked

    def _forked(self, beam: Sequence) -> Sequence:
        """Another that has come as far, over the same pages."""
        fork = replace(
            beam,
            ids=list(beam.ids),
            pages=list(beam.pages),
            source_pages=list(beam.source_pages),
            hashes=list(beam.hashes),
        )
        self.pages.hold(fork)
        return fork

    def _release_siblings(self, sequence: Sequence) -> None:
        for sibling in sequence.siblings:
            self.add(sibling)
        sequence.siblings = []


def _together(sequence: Sequence) -> list[Sequence]:
    """Those who are admitted and pre-empted together."""
    return list(sequence.beams.members) if sequence.beams else [sequence]


def _seats(sequence: Sequence) -> int:
    return sequence.beams.width if sequence.beams else 1
