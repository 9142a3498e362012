"""The API over engines in this very process: real routes, real engines, no sockets; quick enough for every family.

async with local.serving(sorter=folder) as http: await http.post("/v1/tasks/text-classification", json=...)
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec

from trefoil import wire
from trefoil.api.app import create_app
from trefoil.api.fine_tuned import FineTuned
from trefoil.api.fleet import Fleet, engine_spec, read_model
from trefoil.engine.engine import Engine
from trefoil.engine.process import obey
from trefoil.engine.startup import start
from trefoil.metrics import Metrics
from trefoil.settings import ModelSource, Settings
from trefoil.store.store import Store


class Mailbox:
    """One direction of the wire, in memory."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()

    def send(self, message: bytes) -> None:
        self._queue.put_nowait(message)

    async def recv(self) -> bytes:
        return await self._queue.get()

    def waiting(self) -> list[bytes]:
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]


@asynccontextmanager
async def serving(**folders: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API that serves these folders."""
    sources = tuple(ModelSource(name, str(folder)) for name, folder in folders.items())
    settings = Settings(models=sources, dtype="float32", kv_cache_memory=2**24, max_num_batched_tokens=96)
    fleet = Fleet(settings, [read_model(source, settings, Metrics()) for source in sources], Metrics())
    tasks = [task for model in fleet.models.values() for task in _run(fleet, model.name)]
    store = Store.open(settings.database, settings.data_dir)
    transport = httpx.ASGITransport(create_app(fleet, store, FineTuned(fleet, store)))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://local") as client:
            while (await client.get("/ready")).status_code != 200:
                await asyncio.sleep(0)
            yield client
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await fleet.stop()
        store.close()


def _run(fleet: Fleet, name: str) -> list["asyncio.Task[None]"]:
    model, inbox, outbox = fleet.models[name], Mailbox(), Mailbox()
    encode = msgspec.msgpack.Encoder().encode
    engine = start(
        engine_spec(model, fleet.settings, sockets="", share=1.0, adapters={}),
        lambda said: outbox.send(encode(said)),
    )
    listening = model.engine.listen(inbox, outbox, lambda said: None)  # type: ignore[arg-type]
    return [asyncio.create_task(listening), asyncio.create_task(_drive(engine, inbox, outbox))]


async def _drive(engine: Engine, inbox: Mailbox, outbox: Mailbox) -> None:
    """Turn after turn, as the engine's process would."""
    decode, encode = msgspec.msgpack.Decoder(wire.Command).decode, msgspec.msgpack.Encoder().encode
    while True:
        first = [] if engine.has_work else [await inbox.recv()]
        events = obey(engine, [decode(message) for message in first + inbox.waiting()])
        if engine.has_work:
            events += engine.step()
        outbox.send(encode(wire.Batch(events, engine.stats())))
        await asyncio.sleep(0)
