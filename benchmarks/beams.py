"""What a beam search costs beside greedy decoding, on the engine core in this process.

    python benchmarks/beams.py FOLDER --batch 16 --beams 4

A batch of random inputs of mixed lengths, every answer as long as asked for; rounds of greedy and of beam search by
turns, and the median of the ratios of rounds that stood side by side. Both must give the same answers in every round.
"""

import argparse
import statistics
import time
from pathlib import Path

from msgspec.structs import replace

from offline import asked, generating, spec_of
from trefoil import wire
from trefoil.engine.generator import Generator
from trefoil.logs import configure_logs
from workload import Request, Span, Workload


def main() -> None:
    """Measure one folder and print a line a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--input-len", type=Span.parse, default=Span(32, 96), metavar="LOW:HIGH")
    parser.add_argument("--output-len", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", choices=["int8", "int4"])
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    configure_logs(as_json=False)
    spec = spec_of(given.folder, kv_cache_memory="512MiB", dtype=given.dtype, threads=given.threads)
    generator = generating(replace(spec, quantization=given.quantization))
    workload = Workload(num_prompts=given.batch, input_len=given.input_len, output_len=Span(*[given.output_len] * 2))
    requests = workload.requests()
    widths = (1, given.beams)
    expected = [answers(generator, requests, width) for width in widths]  # also warms up
    ratios = []
    for number in range(given.rounds):
        seconds = [timed(generator, requests, width, ids) for width, ids in zip(widths, expected, strict=True)]
        ratios.append(seconds[1] / seconds[0])
        rates = " ".join(
            f"{width} beams {given.batch * given.output_len / taken:.0f} tok/s"
            for width, taken in zip(widths, seconds, strict=True)
        )
        print(f"round {number + 1}: {rates}, {ratios[-1]:.2f} times", flush=True)
    print(f"median: beam search takes {statistics.median(ratios):.2f} times what greedy decoding takes")


def timed(generator: Generator, requests: list[Request], beams: int, expected: dict[str, list[int]]) -> float:
    """Seconds for all answers, which must be those of before."""
    started = time.perf_counter()
    found = answers(generator, requests, beams)
    seconds = time.perf_counter() - started
    assert found == expected, "the answers changed"
    return seconds


def answers(generator: Generator, requests: list[Request], beams: int) -> dict[str, list[int]]:
    """The best answer to each request, all sent at once; every page must be back at the end."""
    ids: dict[str, list[int]] = {str(number): [] for number in range(len(requests))}
    for number, request in enumerate(requests):
        params = wire.SamplingParams(max_tokens=request.max_tokens, temperature=0.0, beams=beams)
        generator.submit(asked(generator, str(number), request, params))
    while generator.has_work:
        for event in generator.step():
            match event:
                case wire.Tokens():
                    ids[event.id] += event.ids
                case wire.Failed():
                    raise SystemExit(event.message)
    generator.check_books()
    assert all(ids.values()), "a request came to nothing"
    return ids


if __name__ == "__main__":
    main()
