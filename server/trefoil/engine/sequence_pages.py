"""Which pages a sequence holds: for its own ids and for an encoder's output, fresh, shared by content, copied on write.

Both kinds come from one pool. Who may run, and so compute the rows and write them, is the scheduler's business.
"""

from collections.abc import Sequence as Seq

from trefoil.engine.pages import PagePool, page_name, source_page_name
from trefoil.engine.sequence import Sequence


class SequencePages:
    """Over one pool; with `shares` full pages bear names by their content, so that equal beginnings meet."""

    def __init__(self, pool: PagePool, *, shares: bool) -> None:
        self._pool, self._shares, self._size = pool, shares, pool.page_size

    def admit(self, members: Seq[Sequence]) -> bool:
        """Give a sequence, or all beams of a search, pages for their ids and their input; or nothing.

        Leading pages whose content is here are shared, and rows in them count as computed. The other beams share the
        first one's full pages of the prompt, which it computes for them.
        """
        first, *others = members
        trunk = first.prompt_len // self._size if others else 0
        shared, source = self._shared_prefix(first), self._found_source(first)
        fresh = self._pool.pages_for(len(first.ids)) - len(shared)
        fresh_source = self._pool.pages_for(len(first.source)) - len(source)
        fresh_others = [self._pool.pages_for(len(other.ids)) - trunk for other in others]
        needed = fresh + fresh_source + sum(fresh_others)
        if needed + self._pool.num_idle([*shared, *source]) > self._pool.num_free:
            return False
        self._pool.share([*shared, *source])
        first.pages, first.computed = shared + self._pool.take(fresh), len(shared) * self._size
        first.source_pages, first.is_encoded = source + self._pool.take(fresh_source), not fresh_source
        self._name_source(first)
        for other, count in zip(others, fresh_others, strict=True):
            other.pages, other.computed = first.pages[:trunk], trunk * self._size
            other.source_pages, other.is_encoded = list(first.source_pages), True
            self.hold(other)
            other.pages += self._pool.take(count)
        return True

    def has_source(self, sequence: Sequence) -> bool:
        """Is what an encoder makes of its input here already, or is there no input?"""
        return len(self._found_source(sequence)) == self._pool.pages_for(len(sequence.source))

    def missing(self, sequence: Sequence) -> int:
        """How many pages it must take before its next rows can be written."""
        return self._pool.pages_for(len(sequence.ids)) - len(sequence.pages) + self._must_copy(sequence)

    def grow(self, sequence: Sequence) -> None:
        """Take those; a half-filled page that others hold too is to be copied before the step writes."""
        if self._must_copy(sequence):
            at = sequence.computed // self._size
            source, (target,) = sequence.pages[at], self._pool.take(1)
            sequence.copied = source, target
            self._pool.give_back([source])
            sequence.pages[at] = target
        sequence.pages += self._pool.take(self._pool.pages_for(len(sequence.ids)) - len(sequence.pages))

    def extend(self, sequences: Seq[Sequence]) -> bool:
        """Pages for one row beyond what each has computed, ids known or not; or nothing, where they run short."""
        missing = [self._pool.pages_for(sequence.computed + 1) - len(sequence.pages) for sequence in sequences]
        if sum(missing) > self._pool.num_free or any(self._must_copy(sequence) for sequence in sequences):
            return False
        for sequence, count in zip(sequences, missing, strict=True):
            sequence.pages += self._pool.take(count)
        return True

    def fork(self, sequence: Sequence, sibling: Sequence) -> list[tuple[int, int]] | None:
        """Let a sibling start from the sequence's last row: full pages shared, the half-filled one to be copied.

        None where there is no page for that.
        """
        num_full, rest = divmod(len(sequence.ids), self._size)
        if self._pool.num_free < bool(rest):
            return None
        sibling.pages, sibling.source_pages = sequence.pages[:num_full], list(sequence.source_pages)
        self.hold(sibling)
        own = self._pool.take(bool(rest))
        sibling.pages += own
        sibling.computed, sibling.cached_len, sibling.is_encoded = sequence.prompt_len, sequence.cached_len, True
        return [(sequence.pages[num_full], page) for page in own]

    def hold(self, sequence: Sequence) -> None:
        """One more holder for each page it lists."""
        self._pool.share(sequence.pages)
        self._pool.share(sequence.source_pages)

    def give_back(self, sequence: Sequence) -> None:
        """It holds nothing any more and has computed nothing."""
        self._pool.give_back(sequence.pages)
        self._pool.give_back(sequence.source_pages)
        sequence.pages, sequence.source_pages = [], []
        sequence.computed, sequence.is_encoded, sequence.copied = 0, False, None

    def name(self, sequence: Sequence, start: int, end: int) -> None:
        """Rows `start` to `end` are computed in this step: full pages can be found from now on.

        That is early enough, for a step writes every row's keys before any row reads them.
        """
        if self._shares and sequence.span is None:
            self._hash(sequence, end)
            for number in range(start // self._size, end // self._size):
                self._pool.name(sequence.pages[number], sequence.hashes[number])

    def _must_copy(self, sequence: Sequence) -> bool:
        at, filled = divmod(sequence.computed, self._size)
        return bool(filled) and self._pool.is_shared(sequence.pages[at])

    def _shared_prefix(self, sequence: Sequence) -> list[int]:
        """Full pages with this sequence's leading ids, always leaving the last row to be computed.

        Prompt scores need every row's hidden state, so such a sequence shares nothing until they are given. Where a
        context is read both ways, rows with equal ids before them are not equal.
        """
        if not self._shares or sequence.wants_prompt_scores or sequence.span is not None:
            return []
        self._hash(sequence, len(sequence.ids) - 1)
        return self._pool.find(sequence.hashes[: (len(sequence.ids) - 1) // self._size])

    def _hash(self, sequence: Sequence, length: int) -> None:
        for number in range(len(sequence.hashes), length // self._size):
            before = sequence.hashes[-1] if sequence.hashes else sequence.salt
            ids = sequence.ids[number * self._size : (number + 1) * self._size]
            sequence.hashes.append(page_name(before, ids))

    def _found_source(self, sequence: Sequence) -> list[int]:
        """All pages with an encoder's output for this input, or none."""
        if not self._shares or not sequence.source:
            return []
        if not sequence.source_names:
            count = self._pool.pages_for(len(sequence.source))
            sequence.source_names = [source_page_name(sequence.salt, number) for number in range(count)]
        found = self._pool.find(sequence.source_names)
        return found if len(found) == len(sequence.source_names) else []

    def _name_source(self, sequence: Sequence) -> None:
        for page, name in zip(sequence.source_pages, sequence.source_names, strict=False):
            self._pool.name(page, name)
