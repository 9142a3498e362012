"""The cost of a beam search is measured on answers that are whole, and the same every time."""

from dataclasses import replace
from pathlib import Path

import torch

import shapes
from beams import answers
from offline import generating, spec_of
from rewriting import MANY, ours
from workload import Span, Workload


def test_greedy_and_beams_answer_every_request_at_full_length(tmp_path: Path) -> None:
    folder = shapes.make_checkpoint("tiny-t5", tmp_path / "t5", torch.float32)
    generator = generating(spec_of(folder, kv_cache_memory="2MiB"))
    requests = Workload(5, input_len=Span(3, 40), output_len=Span(6, 6), vocab_size=1000).requests()
    for beams in (1, 4):
        found = answers(generator, requests, beams)
        assert [len(ids) for ids in found.values()] == [6] * 5
        assert answers(generator, requests, beams) == found


def test_encoder_decoders_are_asked_as_they_arrive_and_answer_in_full(tmp_path: Path) -> None:
    folder = shapes.make_checkpoint("tiny-t5", tmp_path / "t5", torch.float32)
    requests = replace(MANY, vocab_size=1000).requests()
    answer = ours(folder, "float32")(requests)
    assert [len(ids) for ids in answer.ids] == [request.max_tokens for request in requests]
