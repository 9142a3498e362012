"""From a spec to an engine: check the folder, read the weights, plan the memory. Says Checked in between."""

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import structlog
import torch

from trefoil import wire
from trefoil.engine.encoder_tape import EncoderTape
from trefoil.engine.engine import Engine, TwoSided
from trefoil.engine.generator import Generator
from trefoil.engine.grammar import Grammars
from trefoil.engine.graphs import Capture, CudaCapture
from trefoil.engine.memory import MemoryPlan, free_bytes, plan_memory
from trefoil.engine.one_pass import OnePass
from trefoil.engine.pages import PagePool
from trefoil.engine.ranks import ALONE, Ranks
from trefoil.engine.runner import Runner
from trefoil.engine.scheduler import Scheduler, Totals
from trefoil.engine.tasks import tasks_of
from trefoil_kernels import paged_attention
from trefoil_kernels.cpu.library import Native, native
from trefoil_kernels.cpu.tape import NotRecordable
from trefoil_kernels.linear import has_bf16_products
from trefoil_kernels.low_bit import has_int4
from trefoil_models import checkpoint
from trefoil_models.attend import ReadsBothWays
from trefoil_models.checkpoint import DTYPES, Blueprint
from trefoil_models.config_keys import CheckpointError
from trefoil_models.packing import lay_together, pack, pack_float8_on
from trefoil_models.pooling import Pooling
from trefoil_models.sentence_files import SentenceFiles
from trefoil_models.slices import FLAG, Share, Slices
from trefoil_models.tokenizer import Tokenizer

log = structlog.get_logger()

FLOAT8_NAMES = {torch.float8_e4m3fn: "fp8_e4m3", torch.float8_e5m2: "fp8_e5m2"}
PAGE_DTYPES = {**DTYPES, "fp8": torch.float8_e4m3fn, **{name: dtype for dtype, name in FLOAT8_NAMES.items()}}


def start(spec: wire.EngineSpec, say: Callable[[wire.Message], None], ranks: Ranks = ALONE) -> Engine:
    """An engine that can answer; `say` hears Checked and Ready. Raises CheckpointError (one line).

    Of several ranks each starts so, with its slices of the weights.
    """
    _share_threads(spec, ranks.share)
    device = _device(spec.device, ranks.share)
    blueprint = checkpoint.inspect(Path(spec.folder), ranks.share)
    limit = _max_model_len(spec, blueprint)
    tokenizer = Tokenizer.load(Path(spec.folder))
    dtype = choose_dtype(spec.dtype, blueprint.folder.dtype_name, device)
    pooling = Pooling(SentenceFiles.read(Path(spec.folder)), kind=blueprint.model.kind)
    generates = "next" in blueprint.heads
    if blueprint.model.kind == "encoder-decoder":
        _check_start(blueprint)
    if generates:
        page_dtype = choose_page_dtype(spec.kv_cache_dtype, dtype, device)
        _memory(spec, blueprint.model, limit, page_dtype, budget=_page_budget(spec, device))
    say(wire.Checked())
    _log_compute(spec.name, device)
    model = _load(spec, blueprint, dtype, device)
    ranks.meet(device)
    if blueprint.slices is not None:
        blueprint.slices.join(model, ranks)
    keys, recorder = blueprint.folder.config, _recorder(spec, device)
    one_pass = OnePass(
        model,
        pooling.to(device),
        max_rows=spec.max_num_batched_tokens,
        max_model_len=limit,
        pad_id=keys.integer("pad_token_id") if "pad_token_id" in keys else None,
        tape=_encoder_tape(spec, model, recorder),
    )
    tasks, side_tasks = tasks_of(blueprint.folder, model.kind, blueprint.heads)
    ready = wire.Ready(
        kind=model.kind,
        tasks=tasks,
        side_tasks=side_tasks,
        architecture=blueprint.folder.architecture,
        dtype=dtype_name(dtype),
        max_model_len=limit,
        vocab_size=model.config.vocab_size,
        quantization=spec.quantization,
    )
    if not generates:
        warm_up_one_pass(one_pass)
        say(ready)
        return one_pass
    memory = _memory(spec, model, limit, page_dtype, budget=ranks.least(_page_budget(spec, device)))
    generator = build_generator(
        model,
        memory,
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        prefix_caching=spec.prefix_caching,
        never=never_chosen(model.config.vocab_size, tokenizer),
        capture=_capture(model, device),
        recorder=recorder,
        slices=blueprint.slices,
        grammars=Grammars(
            tokenizer,
            vocab_size=model.config.vocab_size,
            eos_ids=tokenizer.end_ids(blueprint.folder.eos_ids),
            begins_texts=model.kind == "encoder-decoder",
        ),
    )
    _load_adapters(generator, spec.adapters)
    warm_up(generator)
    _log_plan(spec.name, memory)
    name = dtype_name(memory.dtype)
    say(msgspec.structs.replace(ready, page_size=memory.page_size, num_pages=memory.num_pages, page_dtype=name))
    return generator if memory.max_source_len else TwoSided(generator, one_pass)


def _load(spec: wire.EngineSpec, blueprint: Blueprint, dtype: torch.dtype, device: torch.device) -> checkpoint.Model:
    """The weights as products like them, where they are computed with."""
    if spec.quantization == "int4" and not has_int4():
        raise CheckpointError("--quantization int4: this processor has no AVX-512 VNNI; allowed here: int8, fp8")
    model = blueprint.load(dtype=dtype, device="cpu" if spec.quantization else device)
    if device.type == "cpu":
        pack(model, spec.quantization)
    elif spec.quantization:
        pack_float8_on(model, device)
    else:
        lay_together(model)
    return model


def build_generator(
    model: checkpoint.Model,
    memory: MemoryPlan,
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    prefix_caching: bool,
    never: list[int],
    capture: Capture | None = None,
    recorder: Native | None = None,
    grammars: Grammars | None = None,
    slices: Slices | None = None,
) -> Generator:
    """Put a loaded model on pages; with `capture`, its decode steps run as graphs, with `recorder` as tapes.

    `slices`: what of a whole model it is.
    """
    pool = PagePool(memory.num_pages, memory.page_size)
    if isinstance(model, ReadsBothWays):  # the longest context is one step's, whoever else takes a row
        max_num_batched_tokens = max(max_num_batched_tokens, memory.max_model_len + max_num_seqs)
    scheduler = Scheduler(pool, max_num_seqs, max_num_batched_tokens, prefix_caching)
    runner = Runner(
        model,
        memory,
        max_rows=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
        never=never,
        capture=capture,
        recorder=recorder,
        slices=slices,
    )
    return Generator(
        scheduler,
        runner,
        max_model_len=memory.max_model_len,
        vocab_size=model.config.vocab_size,
        max_source_len=memory.max_source_len,
        length_pivot=model.config.length_pivot,
        grammars=grammars,
    )


def _load_adapters(generator: Generator, folders: Mapping[str, str]) -> None:
    for name, folder in folders.items():
        try:
            generator.runner.adapters.load(name, Path(folder), busy=())
        except CheckpointError as error:
            raise CheckpointError(f"--lora {name}: {error}") from error


def _capture(model: checkpoint.Model, device: torch.device) -> Capture | None:
    """Graphs on a CUDA device, for decoders whose every site the paged kernel takes."""
    is_covered = all(paged_attention.is_covered(site.head_dim, 1) for site in model.sites)
    if device.type != "cuda":
        return None
    if model.kind != "decoder" or not is_covered:
        log.info("no_graphs", kind=model.kind, why="decode steps of this model launch kernel by kernel")
        return None
    return CudaCapture()


def _recorder(spec: wire.EngineSpec, device: torch.device) -> Native | None:
    """What makes tapes on the CPU, of passes that one process computes alone."""
    if device.type != "cpu" or spec.num_ranks == 1:
        return native() if device.type == "cpu" else None
    log.info("no_tapes", model=spec.name, why="a pass that ranks share is computed call by call")
    return None


def _encoder_tape(spec: wire.EngineSpec, model: checkpoint.Model, library: Native | None) -> EncoderTape | None:
    """For encoders of whose passes torch computes nothing."""
    if library is None or model.kind != "encoder":
        return None
    try:
        return EncoderTape(library, model, spec.max_num_batched_tokens)
    except NotRecordable as why:
        log.info("no_tape", model=spec.name, why=f"torch computes {why}")
        return None


def never_chosen(vocab_size: int, tokenizer: Tokenizer) -> list[int]:
    """Ids of the head that no token has: padding of the vocabulary."""
    return [i for i in range(vocab_size) if i >= tokenizer.vocab_len or i in tokenizer.undecodable]


def choose_dtype(asked: str, stored: str, device: torch.device) -> torch.dtype:
    """`auto` takes the stored dtype; a CPU has no float16 arithmetic worth using and not always bfloat16's."""
    if asked != "auto":
        return DTYPES[asked]
    if stored not in DTYPES:
        raise CheckpointError(f"config.json: torch_dtype = {stored!r} is not supported; known: {', '.join(DTYPES)}")
    if device.type == "cpu" and stored != "float32":
        chosen = "bfloat16" if has_bf16_products() or native() is not None else "float32"
        if chosen != stored:
            log.info("dtype_changed", stored=stored, chosen=chosen, why="what this CPU computes fast")
        return DTYPES[chosen]
    return DTYPES[stored]


def choose_page_dtype(asked: str, computed: torch.dtype, device: torch.device) -> torch.dtype:
    """`auto` keeps what the model computes in."""
    if asked == "auto":
        return computed
    chosen = PAGE_DTYPES[asked]
    if chosen == torch.float8_e4m3fn and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        allowed = ", ".join(["auto", *(name for name, dtype in PAGE_DTYPES.items() if dtype != chosen)])
        raise CheckpointError(f"--kv-cache-dtype {asked}: this GPU has no float8 of that kind; allowed here: {allowed}")
    return chosen


def dtype_name(dtype: torch.dtype) -> str:
    """As flags and answers call it."""
    return FLOAT8_NAMES.get(dtype) or str(dtype).removeprefix("torch.")


def warm_up(generator: Generator) -> None:
    """One short request end to end, rows in a chunk and one alone, so that the first user does not pay for first calls.

    It is not counted.
    """
    source = [0] if generator.max_source_len else []
    params = wire.SamplingParams(max_tokens=2, temperature=0.0)
    generator.submit(wire.Generate("warm-up", generator.runner.shortest_prompt, params, source=source))
    while generator.has_work:
        generator.step()
    generator.check_books()
    generator.scheduler.totals = Totals()


def warm_up_one_pass(engine: OnePass) -> None:
    """The same for an engine that only scores."""
    engine.submit(wire.Once("warm-up", [0], "hidden"))
    engine.step()
    engine.num_read = 0


def _share_threads(spec: wire.EngineSpec, share: Share) -> None:
    """A model's threads, or a rank's part of them."""
    if spec.threads or share.count > 1:
        torch.set_num_threads(max((spec.threads or torch.get_num_threads()) // share.count, 1))


def _device(name: str, share: Share) -> torch.device:
    """The processor, or a GPU; every rank has its own."""
    if name != "cuda":
        return torch.device(name)
    if not torch.cuda.is_available():
        raise CheckpointError("--device cuda: no CUDA device is available; allowed here: cpu")
    found = torch.cuda.device_count()
    if share.count > found:
        raise CheckpointError(f"{FLAG} {share.count}: CUDA devices here are {found}; allowed here: up to {found}")
    torch.cuda.set_device(share.rank)
    return torch.device(name)


def _check_start(blueprint: Blueprint) -> None:
    """Raise CheckpointError where nothing says how the decoder begins, or with an id that it has not."""
    start_id, size = blueprint.folder.decoder_start.start_id, blueprint.model.config.vocab_size
    if start_id >= size:
        raise CheckpointError(f"config.json: decoder_start_token_id {start_id} is not below the vocabulary's {size}")


def _max_model_len(spec: wire.EngineSpec, blueprint: Blueprint) -> int:
    longest = blueprint.model.config.longest
    if spec.max_model_len is not None and spec.max_model_len > longest:
        raise CheckpointError(f"--max-model-len {spec.max_model_len}: {spec.name} was made for at most {longest}")
    return spec.max_model_len or int(longest)


def _page_budget(spec: wire.EngineSpec, device: torch.device) -> int:
    """Bytes for a rank's pages: its part of what was given or is free on the host; a GPU's memory is all its own.

    What is free is counted each time: before the weights to refuse in time, after them to share what is left.
    """
    if spec.kv_cache_bytes:
        return spec.kv_cache_bytes // spec.num_ranks
    free = int(free_bytes(device) * spec.memory_share)
    return free if device.type == "cuda" else free // spec.num_ranks


def _memory(
    spec: wire.EngineSpec, model: checkpoint.Model, limit: int, dtype: torch.dtype, *, budget: int
) -> MemoryPlan:
    return plan_memory(
        model.sites,
        page_size=spec.page_size,
        dtype=dtype,
        budget=budget,
        max_model_len=limit,
        max_num_seqs=spec.max_num_seqs,
        num_ranks=spec.num_ranks,
        max_source_len=limit if model.kind == "encoder-decoder" else 0,
    )


def _log_compute(name: str, device: torch.device) -> None:
    """What the weights will meet: the operator sees at once where a compiler or an instruction set is missing."""
    if device.type == "cpu":
        library = native()
        log.info(
            "compute",
            model=name,
            threads=torch.get_num_threads(),
            native_kernels=library.variant if library else None,
            bfloat16_products=has_bf16_products(),
            huge_pages=huge_pages(),
        )


def huge_pages() -> str:
    """What the kernel gives large allocations: `always`, `madvise` (torch then asks) or `never`."""
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    try:
        return path.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return "never"


def _log_plan(name: str, memory: MemoryPlan) -> None:
    log.info(
        "kv_cache",
        model=name,
        mib=round(memory.num_pages * memory.page_bytes / 2**20, 1),
        pages=memory.num_pages,
        page_size=memory.page_size,
        dtype=dtype_name(memory.dtype),
        tokens=memory.num_tokens,
        full_sequences=round(memory.full_sequences, 1),
        max_model_len=memory.max_model_len,
    )
