"""The page pool against a plain model of it."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trefoil.engine.pages import PagePool, page_name


class PoolMachine(RuleBasedStateMachine):
    """Holders are lists of pages; a plain dictionary says what each page's content is called."""

    @initialize(num_pages=st.integers(1, 12))
    def begin(self, num_pages: int) -> None:
        self.pool = PagePool(num_pages, 4)
        self.held: list[list[int]] = []
        self.names: dict[bytes, int] = {}

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, self.pool.num_free))
        taken = self.pool.take(count)
        assert len(set(taken)) == count
        assert not {page for pages in self.held for page in pages} & set(taken)
        self.names = {name: page for name, page in self.names.items() if page not in taken}
        self.held.append(taken)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), name=st.binary(min_size=1, max_size=1))
    def name(self, data: st.DataObject, name: bytes) -> None:
        pages = data.draw(st.sampled_from(self.held))
        if pages:
            page = data.draw(st.sampled_from(pages))
            self.pool.name(page, name)
            if name not in self.names and page not in self.names.values():
                self.names[name] = page

    @rule(names=st.lists(st.binary(min_size=1, max_size=1), max_size=4))
    def find_and_share(self, names: list[bytes]) -> None:
        found = self.pool.find(names)
        leading = []
        for name in names:
            if name not in self.names:
                break
            leading.append(self.names[name])
        assert found == leading
        self.pool.share(found)
        self.held.append(found)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.held) - 1))
        self.pool.give_back(self.held.pop(number))

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check_books(self.held)
            assert self.pool.num_used == len({page for pages in self.held for page in pages})


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase


def test_taking_more_than_is_free_is_our_own_bug() -> None:
    with pytest.raises(AssertionError, match="2 pages asked for, 1 free"):
        PagePool(1, 4).take(2)


def test_the_oldest_unused_content_goes_first_and_the_end_of_a_chain_before_its_start() -> None:
    pool = PagePool(3, 4)
    chain = pool.take(3)
    for page in chain:
        pool.name(page, bytes([page]))
    pool.give_back(chain)
    assert pool.take(2) == [chain[2], chain[1]]
    assert pool.find([bytes([chain[0]])]) == [chain[0]]


def test_a_name_tells_the_whole_prefix() -> None:
    first, other = page_name(b"", [1, 2]), page_name(b"", [3, 4])
    assert page_name(first, [5, 6]) != page_name(other, [5, 6])
    assert page_name(b"salt", [1, 2]) != first == page_name(b"", [1, 2])
