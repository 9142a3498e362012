"""Where an engine hears commands and tells what came of them: at the other end is the API, or the first rank."""

import secrets
from multiprocessing.connection import Connection
from typing import Protocol

import msgspec
import zmq

from trefoil import wire


class Line(Protocol):
    """Where an engine hears commands and tells what came of them."""

    def say(self, message: wire.Message) -> None: ...
    def commands(self, wait_ms: int) -> list[wire.Command]:
        """All that has arrived; waits for the first one."""
        ...


class ApiLine:
    """The engine's end of the wire."""

    def __init__(self, inbox: str, outbox: str) -> None:
        self._context = zmq.Context()
        self._inbox, self._outbox = self._context.socket(zmq.PULL), self._context.socket(zmq.PUSH)
        for socket, address in ((self._inbox, inbox), (self._outbox, outbox)):
            socket.set_hwm(0)
            socket.connect(address)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[wire.Command] = msgspec.msgpack.Decoder(wire.Command)

    def say(self, message: wire.Message) -> None:
        self._outbox.send(self._encoder.encode(message))

    def commands(self, wait_ms: int) -> list[wire.Command]:
        commands: list[wire.Command] = []
        while self._inbox.poll(wait_ms if not commands else 0):
            commands.append(self._decoder.decode(self._inbox.recv()))
        return commands

    def close(self, linger_ms: int) -> None:
        """Let what was said last arrive."""
        self._context.destroy(linger=linger_ms)


class Turn(msgspec.Struct, frozen=True):
    """What the first rank obeys now, and what it counted before."""

    commands: list[wire.Command]
    stats: wire.Stats


class Leading:
    """The first rank's line: what it hears, every rank hears."""

    def __init__(self, line: Line, pipes: list["Connection[bytes, bytes]"]) -> None:
        self._line, self._pipes = line, pipes
        self._stats = wire.Stats()
        self._encoder = msgspec.msgpack.Encoder()

    def say(self, message: wire.Message) -> None:
        if isinstance(message, wire.Batch):
            self._stats = message.stats
        self._line.say(message)

    def commands(self, wait_ms: int) -> list[wire.Command]:
        commands = [_seeded(command) for command in self._line.commands(wait_ms)]
        turn = self._encoder.encode(Turn(commands, self._stats))
        for pipe in self._pipes:
            pipe.send_bytes(turn)
        return commands


class Following:
    """Another rank's: it hears what the first one hears, and nobody hears it."""

    def __init__(self, pipe: "Connection[bytes, bytes]") -> None:
        self._pipe = pipe
        self._stats = wire.Stats()
        self._decoder = msgspec.msgpack.Decoder(Turn)

    def say(self, message: wire.Message) -> None:
        if isinstance(message, wire.Batch):
            self._stats = message.stats

    def commands(self, wait_ms: int) -> list[wire.Command]:
        try:
            turn = self._decoder.decode(self._pipe.recv_bytes())
        except EOFError:
            return []  # the first rank is gone, and who serves sees that its parent is
        assert turn.stats == self._stats, f"the first rank counts {turn.stats}, this one {self._stats}"
        return turn.commands


def _seeded(command: wire.Command) -> wire.Command:
    """All ranks draw alike."""
    if not isinstance(command, wire.Generate) or command.params.seed is not None:
        return command
    return msgspec.structs.replace(command, params=msgspec.structs.replace(command.params, seed=secrets.randbits(63)))
