"""What every engine answers to the process that drives it, and the one that both generates and scores."""

from typing import Protocol

import msgspec

from trefoil import wire
from trefoil.engine.generator import Generator
from trefoil.engine.one_pass import OnePass


class Engine(Protocol):
    """Requests in, events out, one step at a time. No process, no socket, no text."""

    @property
    def has_work(self) -> bool: ...
    def submit(self, request: wire.Request) -> list[wire.Event]:
        """Queue a request; a refusal where it can never run."""
        ...

    def abort(self, command: wire.Abort) -> None:
        """Forget a request."""
        ...

    def load_adapter(self, command: wire.LoadAdapter) -> None:
        """Take an adapter in; one that cannot be used is told to whoever asks for it."""
        ...

    def unload_adapter(self, command: wire.UnloadAdapter) -> None:
        """Forget an adapter."""
        ...

    def step(self) -> list[wire.Event]:
        """One turn; what it brought."""
        ...

    def stats(self) -> wire.Stats:
        """Gauges and totals as they stand."""
        ...

    def check_books(self) -> None:
        """Raise AssertionError where something went astray."""
        ...


class TwoSided:
    """A model that generates and whose hidden rows can be asked for as well: a turn of each side."""

    def __init__(self, generator: Generator, one_pass: OnePass) -> None:
        self.generator, self.one_pass = generator, one_pass

    @property
    def has_work(self) -> bool:
        return self.generator.has_work or self.one_pass.has_work

    def submit(self, request: wire.Request) -> list[wire.Event]:
        """Hand the request to the side it is for."""
        return self.generator.submit(request) if isinstance(request, wire.Generate) else self.one_pass.submit(request)

    def abort(self, command: wire.Abort) -> None:
        """Each side forgets what it knows of the request."""
        self.generator.abort(command)
        self.one_pass.abort(command)

    def load_adapter(self, command: wire.LoadAdapter) -> None:
        """Adapters change what is generated."""
        self.generator.load_adapter(command)

    def unload_adapter(self, command: wire.UnloadAdapter) -> None:
        self.generator.unload_adapter(command)

    def step(self) -> list[wire.Event]:
        """A turn of each side that has work."""
        return [event for side in (self.generator, self.one_pass) if side.has_work for event in side.step()]

    def stats(self) -> wire.Stats:
        """The generator's, with what waits and was read on the other side added."""
        stats, other = self.generator.stats(), self.one_pass.stats()
        return msgspec.structs.replace(
            stats, waiting=stats.waiting + other.waiting, prompt_tokens=stats.prompt_tokens + other.prompt_tokens
        )

    def check_books(self) -> None:
        self.generator.check_books()
        self.one_pass.check_books()
