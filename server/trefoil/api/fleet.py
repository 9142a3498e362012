"""One engine process per model: start, watch, start again after a loss, stop. Knows each model's text side too."""

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import structlog
import zmq
import zmq.asyncio

from trefoil import wire
from trefoil.api.engine_client import EngineClient
from trefoil.api.engine_processes import EngineNotStarted, EngineProcesses
from trefoil.api.upstream import RemoteModel, UpstreamUnfit
from trefoil.errors import InvalidRequest, ModelLoading, ModelNotFound, UpstreamLost, WrongState, WrongTask
from trefoil.metrics import Metrics
from trefoil.settings import ModelSource, Settings
from trefoil_models.config_keys import CheckpointError, Keys
from trefoil_models.model_folder import (
    ADAPTER_CONFIG,
    DecoderStart,
    GenerationDefaults,
    ModelFolder,
    find_folder,
    read_json,
)
from trefoil_models.sentence_files import SentenceFiles
from trefoil_models.tokenizer import Tokenizer, TokenizerError

log = structlog.get_logger()

T = TypeVar("T")

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
LONGEST_SOCKET_FOLDER = 70
NO_NAME = "dummy"
"""What Hugging Face's client calls the model where it was told an address only."""
INLINE_CHARS = 2000
"""Text up to this length is tokenised on the event loop: a thread's hop costs more."""


class StartRefused(Exception):
    """A model that cannot be served; one line says which and why."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the API knows of a model: its name, its text side, its engine."""

    name: str
    folder: Path
    tokenizer: Tokenizer
    eos_ids: tuple[int, ...]
    defaults: GenerationDefaults
    config: Keys
    labels: tuple[str, ...]
    sentences: SentenceFiles
    source: ModelFolder
    engine: EngineClient
    created: int
    parent: str | None = None
    adapter: Path | None = None

    @property
    def adapter_name(self) -> str | None:
        """What the engine knows the adapter by, where the model is one on another model's engine."""
        return None if self.adapter is None else self.name

    @property
    def ready(self) -> wire.Ready:
        """What the engine said when it came up. Raises ModelLoading before."""
        if self.engine.ready is None:
            raise ModelLoading(f"the model {self.name} is still loading; try again shortly", param="model")
        return self.engine.ready

    @property
    def about(self) -> wire.Ready:
        """What the engine last said of itself, which holds while it is started again. Raises ModelLoading before."""
        return self.engine.about or self.ready

    @property
    def start(self) -> DecoderStart | None:
        """How answers begin where an encoder reads the prompt; None: as the prompt goes on."""
        return self.source.decoder_start if self.about.kind == "encoder-decoder" else None

    def room(self, prompt_len: int) -> int:
        """Most tokens that an answer to so long a prompt may have; below 1 where the prompt does not fit."""
        limit = self.ready.max_model_len
        if self.start is None:
            return limit - prompt_len
        return limit - 1 if prompt_len <= limit else 0

    @property
    def made_for(self) -> tuple[str, ...]:
        """What its checkpoint was made for. Raises ModelLoading before that is known."""
        return self.about.tasks

    @property
    def tasks(self) -> tuple[str, ...]:
        """All that it can do; an adapter changes what is generated only. Raises ModelLoading before that is known."""
        if self.adapter is not None:
            return self.about.tasks
        return (*self.about.tasks, *self.about.side_tasks)


@dataclass(frozen=True, slots=True)
class Milestone:
    """A message of an engine's first start that somebody waits for."""

    reached: "asyncio.Future[None]"
    message: type[wire.Checked | wire.Ready]


class Fleet:
    """All served models of one server."""

    def __init__(self, settings: Settings, models: list[ServedModel], metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.models = {model.name: model for model in models}
        remote = [source for source in settings.models if source.is_remote]
        self.remotes = {source.name: RemoteModel(source, settings, metrics) for source in remote}
        """Those that other servers answer for."""
        self.away: dict[str, ServedModel] = {}
        """Unloaded, until they are loaded again or forgotten."""
        self._threads = ThreadPoolExecutor(max_workers=max(2, (os.cpu_count() or 2) // 2), thread_name_prefix="text")
        self._context = zmq.asyncio.Context()
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._processes = EngineProcesses()

    @classmethod
    async def start(cls, settings: Settings, metrics: Metrics) -> "Fleet":
        """Start every engine; returns once each has found its model folder sound. Raises StartRefused."""
        local = [source for source in settings.models if not source.is_remote]
        models = [await asyncio.to_thread(read_model, source, settings, metrics) for source in local]
        fleet = cls(settings, models, metrics)
        for source in settings.loras:
            fleet._take_lora(source)
        checks = [fleet._start_engine(model) for model in models]
        try:
            await asyncio.gather(*(fleet._begin_watch(remote) for remote in fleet.remotes.values()))
            for checked in checks:
                await checked
        except (StartRefused, asyncio.CancelledError):
            await fleet.stop()
            raise
        return fleet

    async def stop(self) -> None:
        """End every engine process."""
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)
        await asyncio.gather(*(remote.close() for remote in self.remotes.values()))
        self._context.destroy(linger=0)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def cut(self, why: str) -> None:
        """Fail every running request now."""
        for model in self.models.values():
            model.engine.lose(why)
        for remote in self.remotes.values():
            remote.cut(why)

    def add_adapter(self, name: str, folder: Path, *, base: ServedModel, parent: str, created: int) -> None:
        """Serve an adapter on its base's engine, from the next request on, or once that is loaded again."""
        adapter = self.away[name] = replace(base, name=name, parent=parent, adapter=folder, created=created)
        if self._has_engine(adapter):
            self._put_back(adapter)

    async def add_whole(self, name: str, folder: Path, *, parent: str, created: int) -> None:
        """Serve a whole model by an engine of its own, started now. Raises StartRefused."""
        model = await asyncio.to_thread(read_model, ModelSource(name, str(folder)), self.settings, self.metrics)
        await self._add(replace(model, parent=parent, created=created))

    async def add_source(self, source: ModelSource) -> ServedModel:
        """Serve another folder or Hub id. Raises WrongState where the name is taken, StartRefused.

        Which servers are asked, only the operator says.
        """
        if source.is_remote:
            raise StartRefused("another server's model is given at the start of this one, not by a client")
        model = await asyncio.to_thread(read_model, source, self.settings, self.metrics)
        if self.known(source.name) is not None or source.name in self.remotes:
            raise WrongState(f"there is a model {source.name} already", param="model")
        await self._add(model)
        return model

    async def _add(self, model: ServedModel) -> None:
        self.models[model.name] = model
        try:
            await self._start_engine(model, until=wire.Ready)
        except StartRefused:
            await self.remove(model.name)
            raise

    async def remove(self, name: str) -> None:
        """Serve a model no longer; what an adapter is generating ends in order, what a whole model does, at once."""
        model = self.models.pop(name)
        if model.adapter is not None:
            model.engine.unload_adapter(name)
        keeper = self._keepers.pop(name, None)
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def unload(self, name: str) -> None:
        """Take a model away with its engine and the adapters on it, or an adapter alone. Raises ModelNotFound."""
        model = self.find(name)
        for one in [model] if model.adapter is not None else _on_one_engine(model, self.models):
            self.away[one.name] = one
            await self.remove(one.name)

    async def load(self, name: str) -> ServedModel:
        """Serve what was unloaded again, with all that left with it; what is here stays as it is.

        Raises ModelNotFound, StartRefused, WrongTask; WrongState where an adapter's base is away, or the model is
        unloaded again meanwhile.
        """
        if name in self.models or name in self.remotes:
            return self.find(name)
        if name not in self.away:
            raise ModelNotFound(f"the model {name[:80]!r} was never served here", param="model")
        model = self.away[name]
        if model.adapter is not None:
            self._put_back(model)
            return model
        together = _on_one_engine(model, self.away)
        self.models[name] = self.away.pop(name)
        starting = self._start_engine(model, until=wire.Ready)
        try:
            await asyncio.shield(starting)
        except StartRefused:
            await self.unload(name)
            raise
        except asyncio.CancelledError:
            if starting.cancelled():
                raise WrongState(f"the model {name} was unloaded while it was loaded", param="model") from None
            raise
        for adapter in together[:-1]:
            if adapter.name in self.away:
                self._put_back(adapter)
        return model

    def _put_back(self, adapter: ServedModel) -> None:
        """Raises WrongState where its base is away."""
        if not self._has_engine(adapter):
            raise WrongState(f"the base of {adapter.name} is not loaded", param="model")
        adapter.engine.load_adapter(adapter.name, str(adapter.adapter))
        self.models[adapter.name] = self.away.pop(adapter.name)

    def _has_engine(self, adapter: ServedModel) -> bool:
        return any(model.engine is adapter.engine for model in self.models.values())

    def known(self, name: str) -> ServedModel | None:
        """A model that is served, or was and is away."""
        return self.models.get(name) or self.away.get(name)

    def find(self, *names: str | None, task: str | None = None) -> ServedModel:
        """The model of the first name given, or the only one there is for the task, of those with an engine here.

        Raises what `pick` does; WrongTask where another server answers for the model.
        """
        model = self.pick(*names, task=task)
        if isinstance(model, RemoteModel):
            raise WrongTask(f"another server answers for {model.name}, and this needs the model here", param="model")
        if task is not None:
            self.metrics.tasks.labels(model.name, task).inc()
        return model

    def pick(self, *names: str | None, task: str | None = None) -> ServedModel | RemoteModel:
        """The model of the first name given, or the only one there is for the task.

        Raises ModelNotFound; WrongTask where it cannot do the task; InvalidRequest where several could; ModelLoading
        where what a model can do is not known yet.
        """
        name = next((name for name in names if name is not None and (name != NO_NAME or self._is_known(name))), None)
        if name is None:
            name = self._only(task)
        if name in self.away:
            raise ModelNotFound(f"the model {name} is unloaded; POST /v1/models/load brings it back", param="model")
        model = self.models.get(name) or self.remotes.get(name)
        if model is None:
            raise ModelNotFound(f"the model {name[:80]!r} is not served here; see GET /v1/models", param="model")
        if task is not None and task not in model.tasks:
            able = ", ".join(model.tasks)
            raise WrongTask(f"the model {name} cannot do {task}; it can do {able}", param="model")
        return model

    def _is_known(self, name: str) -> bool:
        return name in self.remotes or self.known(name) is not None

    def _only(self, task: str | None) -> str:
        """The one model that was made for the task; where none was, the one that can do it besides.

        What was made from a served model is only served to those who name it.
        """
        local = [model for model in self.models.values() if model.parent is None]
        models: list[ServedModel | RemoteModel] = [*local, *self.remotes.values()]
        if task is None:
            able = models[: len(local)]
        elif len(models) == 1:
            able = models
        else:
            made = [model for model in models if task in model.made_for]
            able = made or [model for model in models if task in model.tasks]
        if len(able) > 1:
            served = ", ".join(model.name for model in able)
            raise InvalidRequest(f"several models are served; name one in `model`: {served}", param="model")
        if not able:
            raise WrongTask(
                f"no served model can do {task or 'this'}; GET /v1/models says what each can", param="model"
            )
        return able[0].name

    async def off_loop(self, size: int, work: Callable[[], T]) -> T:
        """Do text work of `size` characters, in a thread where it is long."""
        return work() if size <= INLINE_CHARS else await self.in_thread(work)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do text work in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _begin_watch(self, remote: RemoteModel) -> None:
        """Look at the server that answers for the model, now and for ever. Raises StartRefused where it cannot.

        One that is not there yet is waited for, as its restart would be.
        """
        try:
            await remote.look()
        except UpstreamUnfit as error:
            raise StartRefused(f"{remote.name}: {error}") from error
        except UpstreamLost as error:
            log.warning("upstream_awaited", model=remote.name, why=error.why)
        self._keepers[remote.name] = asyncio.create_task(remote.watch(), name=f"watch-{remote.name}")

    def _take_lora(self, source: ModelSource) -> None:
        """Find the base of an adapter given at the start. Raises StartRefused."""
        if source.name in self.models or source.name in self.remotes:
            raise StartRefused(f"--lora {source.name}: a model of that name is served already")
        try:
            base = read_json(Path(source.source) / ADAPTER_CONFIG).get("base_model_name_or_path")
        except CheckpointError as error:
            raise StartRefused(f"--lora {source.name}: {error}") from error
        models = [model for model in self.models.values() if model.parent is None]
        named = [model for model in models if base in (model.name, str(model.folder))]
        if len(named or models) != 1:
            served = ", ".join(model.name for model in models)
            raise StartRefused(f"--lora {source.name}: its {ADAPTER_CONFIG} must name its base, one of {served}")
        (model,) = named or models
        folder = Path(source.source).resolve()
        self.models[source.name] = replace(model, name=source.name, parent=model.name, adapter=folder)

    def _start_engine(
        self, model: ServedModel, until: type[wire.Checked | wire.Ready] = wire.Checked
    ) -> "asyncio.Future[None]":
        """Keep an engine for the model from now on; the future ends when it has come so far, or was refused."""
        start: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        keeping = self._keep(model, Milestone(start, until))
        keeper = self._keepers[model.name] = asyncio.create_task(keeping, name=f"keep-{model.name}")
        keeper.add_done_callback(lambda _: start.cancel())
        return start

    async def _keep(self, model: ServedModel, start: Milestone) -> None:
        """Run the model's engine for ever; a loss is followed by a new start, later each time it fails young."""
        backoff = FIRST_BACKOFF_S
        while True:
            started = time.monotonic()
            why = await self._run_engine(model, start)
            if not start.reached.done():
                start.reached.set_exception(StartRefused(f"{model.name}: {why}"))
                return
            if time.monotonic() - started > LONGEST_BACKOFF_S:
                backoff = FIRST_BACKOFF_S
            log.error("engine_lost", model=model.name, why=why, next_start_s=backoff)
            self.metrics.restarts.labels(model.name).inc()
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LONGEST_BACKOFF_S)

    async def _run_engine(self, model: ServedModel, start: Milestone) -> str:
        """One life of an engine process; why it ended."""
        sockets = tempfile.TemporaryDirectory(prefix="trefoil-", dir=socket_folder())
        share = 1 / len([other for other in self.models.values() if other.adapter is None])
        adapters = {
            source.name: source.source
            for source in self.settings.loras
            if source.name in self.models and self.models[source.name].parent == model.name
        }
        spec = engine_spec(model, self.settings, sockets=sockets.name, share=share, adapters=adapters)
        inbox, outbox = self._context.socket(zmq.PUSH), self._context.socket(zmq.PULL)
        refusals: list[str] = []

        def on_start(message: wire.Message) -> None:
            if isinstance(message, wire.Refused):
                refusals.append(message.message)
            elif isinstance(message, start.message) and not start.reached.done():
                start.reached.set_result(None)
            if isinstance(message, wire.Ready):
                sockets.cleanup()  # both ends hold the wire now; whoever is killed leaves no files
                log.info("model_ready", model=model.name, dtype=message.dtype, max_model_len=message.max_model_len)
                if "text-generation" in message.tasks and not model.tokenizer.writes_chats:
                    log.info("no_chat_template", model=model.name, instead="a plain User:/Assistant: layout")
                if (fault := model.tokenizer.chat_fault) is not None:
                    log.warning("broken_chat_template", model=model.name, why=fault, still="answers completions")

        for socket, address in ((inbox, spec.inbox), (outbox, spec.outbox)):
            socket.set_hwm(0)
            socket.bind(address)
        listening = asyncio.create_task(model.engine.listen(inbox, outbox, on_start))
        process = None
        try:
            process = await self._processes.start(spec)
            status = await asyncio.shield(process.ended)
            await _settle(listening)
        except EngineNotStarted as error:
            return str(error)
        finally:
            listening.cancel()
            if process is not None:
                await process.kill()
            model.engine.lose(f"the engine of {model.name} stopped under this request; it is being started again")
            for socket in (inbox, outbox):
                socket.close(linger=0)
            sockets.cleanup()
        return refusals[0] if refusals else f"the engine process ended with status {status}"


def _on_one_engine(model: ServedModel, models: Mapping[str, ServedModel]) -> list[ServedModel]:
    """The model and the adapters on its engine, itself last."""
    return [one for one in models.values() if one.engine is model.engine and one is not model] + [model]


def socket_folder() -> str:
    """Where temporary files go, unless that path is too long for a socket's name, which has 107 bytes."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) < LONGEST_SOCKET_FOLDER else "/tmp"  # noqa: S108 - a private folder in it


def read_model(source: ModelSource, settings: Settings, metrics: Metrics) -> ServedModel:
    """Find the folder (or download it) and read its text side. Raises StartRefused."""
    try:
        folder = ModelFolder.read(find_folder(source.source))
        tokenizer = Tokenizer.load(folder.path)
        eos_ids = tokenizer.end_ids(folder.eos_ids)
        defaults, labels = folder.defaults, folder.labels
        sentences = SentenceFiles.read(folder.path)
    except (CheckpointError, TokenizerError) as error:
        raise StartRefused(f"{source.name}: {error}") from error
    engine = EngineClient(
        source.name, capacity=settings.max_num_seqs, max_queued=settings.max_num_queued_reqs, metrics=metrics
    )
    return ServedModel(
        name=source.name,
        folder=folder.path,
        tokenizer=tokenizer,
        eos_ids=tuple(dict.fromkeys((*eos_ids, *tokenizer.turn_end_ids))),
        defaults=defaults,
        config=folder.config,
        labels=labels,
        sentences=sentences,
        source=folder,
        engine=engine,
        created=int(time.time()),
    )


def engine_spec(
    model: ServedModel, settings: Settings, *, sockets: str, share: float, adapters: dict[str, str]
) -> wire.EngineSpec:
    """The settings of one engine; `sockets` is the folder of its wire, and `share` of the memory is its own."""
    return wire.EngineSpec(
        name=model.name,
        folder=str(model.folder),
        inbox=f"ipc://{sockets}/in",
        outbox=f"ipc://{sockets}/out",
        device=settings.device,
        dtype=settings.dtype,
        quantization=settings.quantization,
        threads=settings.threads,
        num_ranks=settings.tensor_parallel_size,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.rows_per_step,
        page_size=settings.block_size,
        kv_cache_bytes=settings.kv_cache_memory,
        kv_cache_dtype=settings.kv_cache_dtype,
        memory_share=settings.memory_utilization * share,
        prefix_caching=settings.enable_prefix_caching,
        adapters=adapters,
        log_json=settings.log_json,
    )


async def _settle(listening: Awaitable[None]) -> None:
    """Let what the engine said last arrive: a refusal is sent just before the end."""
    await asyncio.wait([asyncio.ensure_future(listening)], timeout=0.2)
