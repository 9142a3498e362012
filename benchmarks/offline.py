"""The same workloads straight on the engine core in this process: no HTTP, no second process, no text while it runs.

    python benchmarks/offline.py FOLDER --num-prompts 64 --max-concurrency 16 --ignore-eos --kv-waste

KV waste follows the PagedAttention paper (Kwon et al., arXiv 2309.06180, section 3 and figure 2): the share of the KV
memory held by running sequences that stores no token's keys and values. After each step it is

    1 - filled slots / (held pages x slots per page)

over the distinct pages that running sequences hold at that moment, a shared page counting once and as full as its
fullest holder has it. Pages given to a whole prompt at admission thus count as waste until its chunks are computed;
pages that nobody holds are free, even where they can still be found by prefix. Printed is the mean over all steps
after which any page is held.
"""

import argparse
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from load import told
from report import Record, Run, write_json
from trefoil import wire
from trefoil.engine.engine import TwoSided
from trefoil.engine.generator import Generator
from trefoil.engine.startup import start
from trefoil.logs import configure_logs
from trefoil.settings import Settings, parse_bytes
from trefoil_models.model_folder import ModelFolder
from trefoil_models.tokenizer import Tokenizer
from workload import START_ID, Request, Span, Workload, add_workload_flags, read_workload

Watch = Callable[[Generator], None]


@dataclass(slots=True)
class PageWatch:
    """Looks at the held pages after every step."""

    shares: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def __call__(self, generator: Generator) -> None:
        running = generator.scheduler.running
        share = waste(((s.pages, s.computed) for s in running), generator.scheduler.pool.page_size)
        if share is not None:
            self.shares.append(share)
            self.lengths += [sequence.computed for sequence in running]

    @property
    def lines(self) -> dict[str, float]:
        """What the block says of it."""
        if not self.shares:
            return {}
        return {
            "KV waste, mean over steps (%)": 100 * sum(self.shares) / len(self.shares),
            "KV waste, worst step (%)": 100 * max(self.shares),
            "Mean tokens held by a sequence": sum(self.lengths) / len(self.lengths),
        }


def waste(held: Iterable[tuple[Sequence[int], int]], page_size: int) -> float | None:
    """The share of unused slots, given each sequence's pages and how many of its ids are stored; None: no page held."""
    filled: dict[int, int] = {}
    for pages, num_stored in held:
        for number, page in enumerate(pages):
            slots = min(max(num_stored - number * page_size, 0), page_size)
            filled[page] = max(filled.get(page, 0), slots)
    return 1 - sum(filled.values()) / (len(filled) * page_size) if filled else None


def measure(spec: wire.EngineSpec, workload: Workload, *, num_warmups: int = 1, has_waste: bool = False) -> Run:
    """Start the engine as a server would, warm it up with other ids, and time the workload; answers become text."""
    folder, tokenizer = ModelFolder.read(Path(spec.folder)), Tokenizer.load(Path(spec.folder))
    generator = generating(spec)
    stop_ids = () if workload.ignore_eos else folder.eos_ids
    warmup = replace(workload, num_prompts=num_warmups, output_len=Span(8, 8), request_rate=math.inf, content_seed=-1)
    drive(generator, warmup.requests() if num_warmups else [], workload.max_concurrency, stop_ids)
    watch = PageWatch()
    started = time.perf_counter()
    ledger = drive(
        generator, workload.requests(), workload.max_concurrency, stop_ids, watch=watch if has_waste else None
    )
    duration_s = time.perf_counter() - started
    return Run(ledger.told(tokenizer), duration_s, workload.max_concurrency, watch.lines)


def generating(spec: wire.EngineSpec) -> Generator:
    """The side of a fresh engine that generates."""
    engine = start(spec, lambda message: None)
    generator = engine.generator if isinstance(engine, TwoSided) else engine
    assert isinstance(generator, Generator), "only models that generate are measured here"
    return generator


def drive(
    generator: Generator,
    requests: Sequence[Request],
    max_concurrency: int,
    stop_ids: tuple[int, ...] = (),
    *,
    watch: Watch | None = None,
    ends_late: bool = False,
) -> "Ledger":
    """Submit each request once it has arrived and has a place; step until all are answered.

    Where it `ends_late`, what would stop an answer is not chosen before the answer has its whole length.
    """
    waiting = deque(enumerate(requests))
    ledger = Ledger()
    started = time.perf_counter()
    while waiting or generator.has_work:
        while (
            waiting and ledger.num_open < max_concurrency and waiting[0][1].arrival_s <= time.perf_counter() - started
        ):
            number, request = waiting.popleft()
            ledger.open(str(number), request)
            fewest = request.max_tokens if ends_late else 0
            params = wire.SamplingParams(
                max_tokens=request.max_tokens, temperature=0.0, stop_ids=stop_ids, min_tokens=fewest
            )
            ledger.take(generator.submit(asked(generator, str(number), request, params)))
        if generator.has_work:
            ledger.take(generator.step())
            if watch:
                watch(generator)
        elif waiting:
            time.sleep(max(started + waiting[0][1].arrival_s - time.perf_counter(), 0))
    generator.check_books()
    return ledger


def asked(generator: Generator, name: str, request: Request, params: wire.SamplingParams) -> wire.Generate:
    """The request as this engine takes it: an encoder-decoder's encoder reads the ids, and its decoder starts anew."""
    if generator.max_source_len:
        return wire.Generate(name, [START_ID], params, source=request.ids)
    return wire.Generate(name, request.ids, params)


class Ledger:
    """What became of each request, filled from the engine's events."""

    def __init__(self) -> None:
        self.num_open = 0
        self.ids: dict[str, list[int]] = {}
        self._records: dict[str, Record] = {}

    def open(self, name: str, request: Request) -> None:
        """A request goes in now."""
        self.num_open += 1
        self.ids[name] = []
        self._records[name] = Record(len(request.ids), time.perf_counter())

    def take(self, events: Iterable[wire.Event]) -> None:
        """Events that have just come."""
        now = time.perf_counter()
        for event in events:
            match event:
                case wire.Tokens():
                    self._records[event.id].token_times.append(now)
                    self._records[event.id].num_tokens += len(event.ids)
                    self.ids[event.id] += event.ids
                case wire.Failed():
                    self._records[event.id].error = event.message
                    self.num_open -= 1
                case wire.Done():
                    self.num_open -= 1

    def told(self, tokenizer: Tokenizer) -> list[Record]:
        """The records, with the answers as text."""
        for name, record in self._records.items():
            record.text = tokenizer.decode(self.ids[name])
        return list(self._records.values())


def spec_of(folder: Path, *, kv_cache_memory: str, dtype: str = "auto", threads: int | None = None) -> wire.EngineSpec:
    """What `trefoil serve` gives its engine when no other flag is set."""
    settings = Settings(models=())
    return wire.EngineSpec(
        name=folder.name,
        folder=str(folder),
        inbox="",
        outbox="",
        dtype=dtype,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.rows_per_step,
        page_size=settings.block_size,
        kv_cache_bytes=parse_bytes("--kv-cache-memory", kv_cache_memory),
        prefix_caching=settings.enable_prefix_caching,
        threads=threads,
    )


def main() -> None:
    """Run one workload on one model folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kv-cache-memory", default="1GiB")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", choices=["int8", "int4", "fp8"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--num-warmups", type=int, default=1)
    parser.add_argument("--kv-waste", action="store_true", help="look at the held pages after every step")
    parser.add_argument("--json", type=Path, help="write every number and answer here too")
    add_workload_flags(parser)
    given = parser.parse_args()
    configure_logs(as_json=False)
    spec = spec_of(given.folder, kv_cache_memory=given.kv_cache_memory, dtype=given.dtype, threads=given.threads)
    spec = msgspec.structs.replace(spec, quantization=given.quantization)
    run = measure(spec, read_workload(given), num_warmups=given.num_warmups, has_waste=given.kv_waste)
    print(told(run))
    if given.json:
        write_json(run, given.json)
    sys.exit(bool(run.failures))


if __name__ == "__main__":
    main()
