"""What it costs to lead an answer by a grammar: decode with and without, in one engine, interleaved.

    python benchmarks/structured.py FOLDER [--at-once 1 16] [--rounds 3] [--threads 2]

Led answers are JSON of a list of strings, as long as the free ones; both are sampled, so that each takes the same way
through the sampler. Prints output tokens a second, medians over the rounds, and their ratio. What a grammar costs once
(reading the vocabulary, compiling) is told apart.
"""

import argparse
import json
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from offline import generating, spec_of
from trefoil import wire
from trefoil.api.grammar import of_schema
from trefoil.engine.generator import Generator
from trefoil_models.tokenizer import Tokenizer

LENGTH = 96
SCHEMA = {"type": "array", "items": {"type": "string", "minLength": 8, "maxLength": 40}, "minItems": 200}
BEGINNING = re.compile(r'\[[ \n]?(".*)?', re.DOTALL)


def main() -> None:
    """Time both kinds of answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    grammar = of_schema(SCHEMA, "").grammar()
    generator = generating(spec_of(given.folder, kv_cache_memory="1GiB", threads=given.threads))
    tokenizer = Tokenizer.load(given.folder)
    started = time.perf_counter()
    answer(generator, 1, grammar, seed=0, length=1)
    print(f"the first led answer's first token: {time.perf_counter() - started:.2f} s")
    for count in given.at_once:
        speeds: dict[str | None, list[float]] = {None: [], grammar: []}
        for number in range(given.rounds):
            for led, found in speeds.items():
                started = time.perf_counter()
                texts = answer(generator, count, led, seed=number)
                found.append(count * LENGTH / (time.perf_counter() - started))
                if led is not None:
                    check([tokenizer.decode(ids) for ids in texts])
        free, led_by = (statistics.median(speeds[kind]) for kind in (None, grammar))
        print(f"{count:3} at once: free {free:7.1f}, led {led_by:7.1f} tokens/s, ratio {led_by / free:.2f}")


def answer(
    generator: Generator, count: int, grammar: str | None, *, seed: int, length: int = LENGTH
) -> list[list[int]]:
    """So many answers at once, and their ids."""
    params = wire.SamplingParams(max_tokens=length, temperature=1.0, seed=seed, grammar=grammar)
    found: dict[str, list[int]] = {str(n): [] for n in range(count)}
    for name in found:
        generator.submit(wire.Generate(name, [5, 6, 7 + int(name)], params))
    while generator.has_work:
        for event in generator.step():
            assert not isinstance(event, wire.Failed), event
            if isinstance(event, wire.Tokens):
                found[event.id] += event.ids
    assert all(len(ids) == length for ids in found.values())
    return list(found.values())


def check(texts: Sequence[str]) -> None:
    """Does each begin JSON of the schema?"""
    for text in texts:
        whole = text[: text.rfind('",') + 1]
        assert BEGINNING.fullmatch(text), text
        assert not whole or all(isinstance(item, str) for item in json.loads(whole + "]"))


if __name__ == "__main__":
    main()
