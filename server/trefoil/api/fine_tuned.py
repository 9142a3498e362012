"""What was trained is served: the catalog's models come and go in the fleet while the server runs."""

import asyncio
import shutil
from pathlib import Path

import sqlalchemy as sa
import structlog

from trefoil.api.fleet import Fleet, ServedModel, StartRefused
from trefoil.store.catalog import ADAPTER, StoredModel
from trefoil.store.store import Store

log = structlog.get_logger()

FOLLOW_S = 0.5


class FineTuned:
    """The fine-tuned models of one server."""

    def __init__(self, fleet: Fleet, store: Store) -> None:
        self._fleet, self._store = fleet, store
        self._served: dict[str, StoredModel] = {}
        self._skipped: set[str] = set()
        self._turn = asyncio.Lock()

    async def catch_up(self) -> None:
        """Serve what the catalog has now, and nothing that it has no longer."""
        async with self._turn:
            found = {model.name: model for model in await asyncio.to_thread(self._store.catalog.all)}
            for name in [name for name, model in self._served.items() if not _is_same(found.get(name), model)]:
                del self._served[name]
                self._fleet.away.pop(name, None)
                if name in self._fleet.models:
                    await self._fleet.remove(name)
            for name in found.keys() - self._served.keys() - self._skipped:
                await self._serve(found[name])

    async def follow(self) -> None:
        """Catch up for ever: other servers and workers write into the catalog too."""
        while True:
            try:
                await self.catch_up()
            except sa.exc.OperationalError as error:
                log.warning("database_away", why=str(error.orig))
            await asyncio.sleep(FOLLOW_S)

    async def forget(self, model: ServedModel) -> bool:
        """Take a model out of the catalog, the fleet and the disk; False where the catalog does not know it."""
        stored = await asyncio.to_thread(self._store.catalog.drop, model.name)
        if stored is None:
            return False
        await self.catch_up()
        await asyncio.to_thread(shutil.rmtree, stored.folder, ignore_errors=True)
        return True

    async def _serve(self, model: StoredModel) -> None:
        folder, created = Path(model.folder), int(model.created_at)
        if model.kind == ADAPTER:
            base = self._fleet.known(model.parent) or self._fleet.known(_root(model.name))
            if base is None:
                self._skip(model, "its base model is not served here")
                return
            self._fleet.add_adapter(model.name, folder, base=base, parent=model.parent, created=created)
        else:
            starting = self._fleet.add_whole(model.name, folder, parent=model.parent, created=created)
            try:
                await starting
            except StartRefused as error:
                self._skip(model, str(error))
                return
        self._served[model.name] = model
        log.info("model_published", model=model.name, parent=model.parent, kind=model.kind)

    def _skip(self, model: StoredModel, why: str) -> None:
        self._skipped.add(model.name)
        log.warning("model_not_served", model=model.name, why=why)


def _is_same(found: StoredModel | None, served: StoredModel) -> bool:
    """Written down again by another attempt, a model is the same one."""
    return found is not None and found.folder == served.folder


def _root(name: str) -> str:
    """The base that a name `ft:<base>:<suffix>:<id>` goes back to."""
    return name.removeprefix("ft:").partition(":")[0]
