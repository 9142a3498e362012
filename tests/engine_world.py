"""A generator over a tiny checkpoint, and a plain way to run requests through it to the end."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from trefoil import wire
from trefoil.engine.generator import Generator
from trefoil.engine.grammar import Grammars
from trefoil.engine.graphs import Capture
from trefoil.engine.memory import MemoryPlan
from trefoil.engine.ranks import ALONE, Ranks
from trefoil.engine.startup import build_generator
from trefoil_kernels.cpu.library import Native
from trefoil_models import checkpoint
from trefoil_models.packing import pack
from trefoil_models.tokenizer import Tokenizer


def generator(
    folder: Path,
    *,
    pages: int = 512,
    page_size: int = 4,
    seqs: int = 32,
    rows: int = 64,
    prefix_caching: bool = True,
    never: Sequence[int] = (),
    capture: Capture | None = None,
    dtype: torch.dtype = torch.float32,
    page_dtype: torch.dtype | None = None,
    recorder: Native | None = None,
    eos_ids: Sequence[int] | None = None,
    lay_out: Callable[[Any], None] = pack,
    ranks: Ranks = ALONE,
) -> Generator:
    """An engine without a process, or one rank of it; it follows grammars where it is told which ids end texts."""
    blueprint = checkpoint.inspect(folder, ranks.share)
    model = blueprint.load(dtype=dtype)
    lay_out(model)
    if blueprint.slices is not None:
        blueprint.slices.join(model, ranks)
    longest = min(model.config.longest, pages * page_size)
    longest_source = longest if model.kind == "encoder-decoder" else 0
    memory = MemoryPlan(pages, page_size, 1, page_dtype or dtype, longest, longest_source)
    return build_generator(
        model,
        memory,
        max_num_seqs=seqs,
        max_num_batched_tokens=rows,
        prefix_caching=prefix_caching,
        never=list(never),
        capture=capture,
        recorder=recorder,
        slices=blueprint.slices,
        grammars=None
        if eos_ids is None
        else Grammars(
            Tokenizer.load(folder),
            vocab_size=model.config.vocab_size,
            eos_ids=eos_ids,
            begins_texts=model.kind == "encoder-decoder",
        ),
    )


def request(
    name: str, ids: Sequence[int], max_tokens: int = 8, *, source: Sequence[int] = (), **params: Any
) -> wire.Generate:
    """Greedy unless `params` say otherwise."""
    priority = params.pop("priority", 0)
    params.setdefault("temperature", 0.0)
    sampling = wire.SamplingParams(max_tokens=max_tokens, **params)
    return wire.Generate(name, list(ids), sampling, priority, source=list(source))


def finish(engine: Generator, limit: int = 5000) -> list[wire.Event]:
    """Step until nothing is left; the books are checked after every step."""
    events: list[wire.Event] = []
    for _ in range(limit):
        if not engine.has_work:
            assert engine.scheduler.pool.num_used == 0
            return events
        events += engine.step()
        engine.check_books()
    raise AssertionError("the engine did not finish")


def run(engine: Generator, requests: Iterable[wire.Generate]) -> dict[tuple[str, int], list[int]]:
    """The ids of every answer, by request and index."""
    for one in requests:
        assert engine.submit(one) == []
    return answers(finish(engine))


def answers(events: Iterable[wire.Event]) -> dict[tuple[str, int], list[int]]:
    """Token ids gathered from events."""
    gathered: dict[tuple[str, int], list[int]] = {}
    for event in events:
        if isinstance(event, wire.Tokens):
            gathered.setdefault((event.id, event.index), []).extend(event.ids)
    return gathered
