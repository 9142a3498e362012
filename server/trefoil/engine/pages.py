"""The page pool: who holds which page, which pages can be found again by their content, exact books of both.

A page whose content is named by a hash may be shared; nobody writes to it again. A page given back
by its last holder keeps its name until it is taken for something else, oldest first.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence


class PagePool:
    """Page numbers 0 .. num_pages - 1 and their holders."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self._holders = [0] * num_pages
        self._name_of: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_pages))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_pages - len(self._free)

    def pages_for(self, num_tokens: int) -> int:
        """How many pages hold this many tokens."""
        return -(-num_tokens // self.page_size)

    def take(self, count: int) -> list[int]:
        """Pages of unknown content for the caller to write. The caller has looked at `num_free`."""
        assert count <= len(self._free), f"{count} pages asked for, {len(self._free)} free"
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for page in taken:
            self._forget(page)
            self._holders[page] = 1
        return taken

    def share(self, pages: Iterable[int]) -> None:
        """One more holder for each."""
        for page in pages:
            self._holders[page] += 1
            self._free.pop(page, None)

    def give_back(self, pages: Sequence[int]) -> None:
        """One holder fewer for each; the last pages of a chain are forgotten before the first."""
        for page in reversed(pages):
            assert self._holders[page] > 0, f"page {page} given back more often than taken"
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free[page] = None
                if self._name_of[page] is None:
                    self._free.move_to_end(page, last=False)

    def name(self, page: int, name: bytes) -> None:
        """Let others find this full page; where its content is there already under another page, that one stays."""
        if name not in self._page_of and self._name_of[page] is None:
            self._page_of[name] = page
            self._name_of[page] = name

    def find(self, names: Iterable[bytes]) -> list[int]:
        """Pages of the longest leading run of names that are here; nobody holds them yet for the caller."""
        found = []
        for name in names:
            page = self._page_of.get(name)
            if page is None:
                break
            found.append(page)
        return found

    def is_shared(self, page: int) -> bool:
        """Does another hold this page too?"""
        return self._holders[page] > 1

    def num_idle(self, pages: Iterable[int]) -> int:
        """How many of these pages nobody holds."""
        return sum(not self._holders[page] for page in pages)

    def check_books(self, held: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless the holders' page lists, the counts, the free list and the names agree."""
        counts = [0] * self.num_pages
        for pages in held:
            for page in pages:
                counts[page] += 1
        assert counts == self._holders, "holders do not match the pages that sequences list"
        assert set(self._free) == {page for page in range(self.num_pages) if not counts[page]}, "free list is off"
        named = {page: name for page, name in enumerate(self._name_of) if name is not None}
        assert {name: page for page, name in named.items()} == self._page_of, "names are off"

    def _forget(self, page: int) -> None:
        name = self._name_of[page]
        if name is not None:
            del self._page_of[name]
            self._name_of[page] = None


def source_salt(source: Sequence[int], salt: bytes) -> bytes:
    """What sets pages apart that were computed for this input of an encoder: every row depends on all of it."""
    ids = array("q", source).tobytes()
    return hashlib.blake2b(ids, key=salt[:64], digest_size=16, person=b"source").digest()


def source_page_name(salt: bytes, number: int) -> bytes:
    """The name of one page of an encoder's output; full or not, nobody writes to it again."""
    return hashlib.blake2b(b"%d" % number, key=salt, digest_size=16, person=b"source").digest()


def page_name(before: bytes, ids: Sequence[int]) -> bytes:
    """A page's name: a hash of its ids and of the name of the page before it, so equal names mean equal prefixes."""
    return hashlib.blake2b(array("q", ids).tobytes(), key=before[:64], digest_size=16).digest()
