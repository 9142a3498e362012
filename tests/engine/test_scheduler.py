"""The scheduler against a plain model: what each slot holds is remembered, and every row must find its own prefix."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trefoil.engine.pages import PagePool
from trefoil.engine.scheduler import Plan, Scheduler
from trefoil.engine.sequence import Sequence
from trefoil.wire import SamplingParams

SIZE, LONGEST = 4, 40


def sequence(ids: list[int], *, arrival: int, max_tokens: int = 6, priority: int = 0, index: int = 0) -> Sequence:
    return Sequence(
        request_id=str(arrival),
        index=index,
        ids=ids,
        prompt_len=len(ids),
        params=SamplingParams(max_tokens=max_tokens),
        priority=priority,
        arrival=arrival,
        random=np.random.default_rng(0),
    )


class Memory:
    """Slots hold the prefix that was written there; reading checks that it is the reader's own."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, ...]] = {}

    def compute(self, plan: Plan) -> None:
        for chunk in plan.chunks:
            for at in range(chunk.start, chunk.end):
                self.slots[self.slot(chunk.sequence, at)] = tuple(chunk.sequence.ids[: at + 1])
        for chunk in plan.chunks:
            self.check(chunk.sequence, chunk.end)
        for source, target in plan.copies:
            for at in range(SIZE):
                self.slots[target * SIZE + at] = self.slots.get(source * SIZE + at, ())

    def check(self, one: Sequence, length: int) -> None:
        for at in range(length):
            assert self.slots[self.slot(one, at)] == tuple(one.ids[: at + 1])

    @staticmethod
    def slot(one: Sequence, at: int) -> int:
        return one.pages[at // SIZE] * SIZE + at % SIZE


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        pages=st.integers(LONGEST // SIZE, 24),
        seqs=st.integers(1, 6),
        rows=st.integers(6, 20),
        shares=st.booleans(),
    )
    def begin(self, pages: int, seqs: int, rows: int, shares: bool) -> None:
        self.scheduler = Scheduler(PagePool(pages, SIZE), seqs, rows, shares)
        self.memory = Memory()
        self.arrivals = 0
        self.open: set[Sequence] = set()

    @rule(
        tail=st.lists(st.integers(0, 1), min_size=1, max_size=14),
        shared=st.integers(0, 16),
        num=st.integers(1, 3),
        priority=st.integers(-1, 1),
        max_tokens=st.integers(0, 8),
    )
    def submit(self, tail: list[int], shared: int, num: int, priority: int, max_tokens: int) -> None:
        self.arrivals += 1
        leader, *siblings = [
            sequence([7] * shared + tail, arrival=self.arrivals, max_tokens=max_tokens, priority=priority, index=index)
            for index in range(num)
        ]
        leader.siblings = list(siblings)
        self.open |= {leader, *siblings}
        self.scheduler.add(leader)

    @precondition(lambda self: self.open)
    @rule(tokens=st.lists(st.integers(0, 1), min_size=40, max_size=40))
    def step(self, tokens: list[int]) -> None:
        plan = self.scheduler.plan()
        assert plan.chunks, "nothing planned though there is work"
        assert sum(chunk.num_rows for chunk in plan.chunks) <= self.scheduler.max_num_batched_tokens
        assert all(chunk.num_rows > 0 for chunk in plan.chunks)
        assert len(self.scheduler.running) <= self.scheduler.max_num_seqs
        self.memory.compute(plan)
        self.scheduler.commit(plan)
        for chunk in plan.chunks:
            for taker, token in zip(chunk.takers, tokens, strict=False):
                self.memory.check(taker, taker.computed)
                taker.ids.append(token)
                if taker.num_outputs >= taker.params.max_tokens:
                    self.end(taker)
            if not chunk.sequence.wants_tokens and not chunk.sequence.num_left:
                self.end(chunk.sequence)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        running = sorted(self.scheduler.running + self.scheduler.waiting, key=lambda s: s.order)
        if running:
            self.end(data.draw(st.sampled_from(running)))

    def end(self, one: Sequence) -> None:
        self.scheduler.finish(one)
        self.open.discard(one)

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_books()
            assert set(self.scheduler.sequences()) == self.open

    def teardown(self) -> None:
        for _ in range(3000):
            if not getattr(self, "open", None):
                break
            self.step([0] * 40)
        assert not getattr(self, "open", None), "work that never ends"
        if hasattr(self, "scheduler"):
            assert self.scheduler.pool.num_used == 0


SchedulerMachine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestScheduler = SchedulerMachine.TestCase


def drain(scheduler: Scheduler) -> list[str]:
    """The order in which requests end."""
    order = []
    while scheduler.running or scheduler.waiting:
        plan = scheduler.plan()
        scheduler.commit(plan)
        for taker in [taker for chunk in plan.chunks for taker in chunk.takers]:
            taker.ids.append(0)
            if taker.num_outputs >= taker.params.max_tokens:
                scheduler.finish(taker)
                order.append(taker.request_id)
    return order


def test_a_lower_priority_number_goes_first_then_arrival() -> None:
    scheduler = Scheduler(PagePool(20, SIZE), 1, 16, False)
    for arrival, priority in ((1, 5), (2, 0), (3, 0), (4, -1)):
        scheduler.add(sequence([1, 2, 3], arrival=arrival, priority=priority, max_tokens=1))
    assert drain(scheduler) == ["4", "2", "3", "1"]


def test_a_long_prompt_never_holds_up_those_who_stream() -> None:
    scheduler = Scheduler(PagePool(40, SIZE), 4, 8, False)
    scheduler.add(sequence([1], arrival=1, max_tokens=9))
    scheduler.commit(scheduler.plan())
    scheduler.running[0].ids.append(2)
    scheduler.add(sequence([3] * 30, arrival=2, priority=-1))
    plan = scheduler.plan()
    assert [chunk.num_rows for chunk in plan.chunks] == [1, 7]
    assert plan.chunks[0].takers


def test_the_last_in_order_is_pre_empted_and_comes_back_first() -> None:
    scheduler = Scheduler(PagePool(3, SIZE), 4, 32, False)
    early, late = sequence([1] * 4, arrival=1), sequence([2] * 4, arrival=2)
    for one in (early, late):
        scheduler.add(one)
    for token in (5, 6):
        plan = scheduler.plan()
        scheduler.commit(plan)
        for taker in [taker for chunk in plan.chunks for taker in chunk.takers]:
            taker.ids.append(token)
    assert scheduler.running == [early]
    assert scheduler.waiting == [late]
    assert (late.computed, late.pages, late.ids) == (0, [], [2, 2, 2, 2, 5])


@given(lens=st.lists(st.integers(1, 30), min_size=1, max_size=8), shared=st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_requests_that_arrive_together_share_their_prefix_in_the_same_step(lens: list[int], shared: int) -> None:
    scheduler = Scheduler(PagePool(400, SIZE), 8, 400, True)
    for arrival, length in enumerate(lens):
        scheduler.add(sequence([7] * shared * SIZE + [arrival] * length, arrival=arrival))
    plan = scheduler.plan()
    Memory().compute(plan)
    assert sum(chunk.num_rows for chunk in plan.chunks) == shared * SIZE + sum(lens)
