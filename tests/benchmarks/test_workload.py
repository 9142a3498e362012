"""The same flags ask the same of every engine."""

import argparse
import math

import pytest

from workload import Span, Workload, add_workload_flags, read_workload


def parsed(*flags: str) -> Workload:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_workload_flags(parser)
    return read_workload(parser.parse_args(flags))


def test_a_seed_gives_the_same_requests() -> None:
    assert Workload(seed=3).requests() == Workload(seed=3).requests()
    assert Workload(seed=3).requests() != Workload(seed=4).requests()


def test_another_content_has_the_same_lengths_and_no_prompt_in_common() -> None:
    first, second = (Workload(content_seed=seed).requests() for seed in (0, 1))
    assert [(len(r.ids), r.max_tokens) for r in first] == [(len(r.ids), r.max_tokens) for r in second]
    assert not {tuple(r.ids[:16]) for r in first} & {tuple(r.ids[:16]) for r in second}


def test_lengths_and_ids_keep_their_bounds() -> None:
    requests = Workload(num_prompts=200, input_len=Span(3, 5), output_len=Span(7, 7), vocab_size=10).requests()
    assert {len(request.ids) for request in requests} == {3, 4, 5}
    assert {request.max_tokens for request in requests} == {7}
    assert {token for request in requests for token in request.ids} == set(range(1, 10))


def test_a_shared_prefix_comes_before_every_prompt() -> None:
    requests = Workload(shared_prefix=40, input_len=Span(2, 2)).requests()
    assert {tuple(request.ids[:40]) for request in requests} == {tuple(requests[0].ids[:40])}
    assert {len(request.ids) for request in requests} == {42}
    assert len({tuple(request.ids) for request in requests}) == len(requests)


def test_arrivals_keep_the_rate_and_inf_is_all_at_once() -> None:
    requests = Workload(num_prompts=2000, request_rate=50.0).requests()
    assert requests[-1].arrival_s == pytest.approx(2000 / 50, rel=0.1)
    assert {request.arrival_s for request in Workload().requests()} == {0.0}


@pytest.mark.parametrize(
    "workload",
    [Workload(), Workload(9, 3, 2.5, Span(1, 2), Span(4, 4), 7, 300, True, 5, 6)],
    ids=["plain", "all"],
)
def test_flags_say_the_whole_workload(workload: Workload) -> None:
    assert parsed(*workload.flags()) == workload


def test_plain_flags_are_the_plain_workload() -> None:
    assert parsed() == Workload(request_rate=math.inf)


@pytest.mark.parametrize("text", ["9:3", "0:4", "a", "4:", "-1:2"])
def test_a_span_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="LOW:HIGH"):
        Span.parse(text)
