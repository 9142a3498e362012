"""Random requests, the same for every engine: lengths from one seed, token ids from another, arrivals by a rate.

A server that shares prefixes answers a repeated prompt from its pages; rounds on one server therefore keep the
lengths (`seed`) and change the ids (`content_seed`).
"""

import argparse
import math
import random
from dataclasses import dataclass

START_ID = 0  # what T5 and its kin begin an answer with
FIRST_ORDINARY_ID = 1  # shapes.py gives the id 0 to the token that ends texts


@dataclass(frozen=True, slots=True)
class Span:
    """Whole numbers from `low` to `high`, both included."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "Span":
        """`16:256`, or `64` for exactly that. Raises ArgumentTypeError."""
        low, colon, high = text.partition(":")
        numbers = (low, high if colon else low)
        if not all(number.isdecimal() for number in numbers) or not 0 < int(numbers[0]) <= int(numbers[1]):
            raise argparse.ArgumentTypeError(f"{text!r}: give LOW:HIGH with 0 < LOW <= HIGH")
        return cls(int(numbers[0]), int(numbers[1]))


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, how many tokens to generate, and when it arrives after the start."""

    ids: list[int]
    max_tokens: int
    arrival_s: float


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked. `request_rate` is per second, with Poisson arrivals; inf: all at once, `max_concurrency` in turn.

    `shared_prefix` ids, the same for all, come before each prompt's own `input_len`.
    """

    num_prompts: int = 64
    max_concurrency: int = 16
    request_rate: float = math.inf
    input_len: Span = Span(16, 256)
    output_len: Span = Span(32, 256)
    shared_prefix: int = 0
    vocab_size: int = 32000
    ignore_eos: bool = False
    seed: int = 0
    content_seed: int | None = None

    def requests(self) -> list[Request]:
        """All of them, in order of arrival."""
        lengths = random.Random(f"lengths {self.seed}")
        content = random.Random(f"content {self.seed if self.content_seed is None else self.content_seed}")
        prefix = self._ids(content, self.shared_prefix)
        requests, arrival_s = [], 0.0
        for _ in range(self.num_prompts):
            input_len = lengths.randint(self.input_len.low, self.input_len.high)
            output_len = lengths.randint(self.output_len.low, self.output_len.high)
            requests.append(Request(prefix + self._ids(content, input_len), output_len, arrival_s))
            arrival_s += lengths.expovariate(self.request_rate) if math.isfinite(self.request_rate) else 0.0
        return requests

    def flags(self) -> list[str]:
        """The command line that `read_workload` understands as this."""
        return [
            f"--num-prompts={self.num_prompts}",
            f"--max-concurrency={self.max_concurrency}",
            f"--request-rate={self.request_rate}",
            f"--input-len={self.input_len.low}:{self.input_len.high}",
            f"--output-len={self.output_len.low}:{self.output_len.high}",
            f"--shared-prefix={self.shared_prefix}",
            f"--vocab-size={self.vocab_size}",
            f"--seed={self.seed}",
            *([] if self.content_seed is None else [f"--content-seed={self.content_seed}"]),
            *(["--ignore-eos"] if self.ignore_eos else []),
        ]

    def _ids(self, source: random.Random, count: int) -> list[int]:
        return [source.randrange(FIRST_ORDINARY_ID, self.vocab_size) for _ in range(count)]


def add_workload_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a workload, named as serving benchmarks name them."""
    plain = Workload()
    parser.add_argument("--num-prompts", type=_count, default=plain.num_prompts)
    parser.add_argument("--max-concurrency", type=_count, default=plain.max_concurrency)
    parser.add_argument("--request-rate", type=_rate, default=plain.request_rate, help="requests a second, or inf")
    parser.add_argument("--input-len", type=Span.parse, default=plain.input_len, metavar="LOW:HIGH")
    parser.add_argument("--output-len", type=Span.parse, default=plain.output_len, metavar="LOW:HIGH")
    parser.add_argument(
        "--shared-prefix", type=int, default=plain.shared_prefix, help="ids that all prompts begin with"
    )
    parser.add_argument("--vocab-size", type=_count, default=plain.vocab_size, help="prompt ids are below this")
    parser.add_argument("--seed", type=int, default=plain.seed, help="lengths and arrivals")
    parser.add_argument("--content-seed", type=int, default=None, help="token ids; left out: --seed")
    parser.add_argument("--ignore-eos", action="store_true", help="every answer takes its whole length")


def read_workload(given: argparse.Namespace) -> Workload:
    """The workload that the flags describe."""
    return Workload(**{name: getattr(given, name) for name in Workload.__dataclass_fields__})


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number above 0")
    return int(text)


def _rate(text: str) -> float:
    rate = float(text)
    if not rate > 0:
        raise argparse.ArgumentTypeError(f"{text!r}: give requests a second above 0, or inf")
    return rate
