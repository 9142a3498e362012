"""The async end of the wire to one engine process: submit, listen, abort; fails everything at once when it dies."""

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec
import zmq
import zmq.asyncio
from opentelemetry import trace

from trefoil import wire
from trefoil.errors import EngineLost, InvalidRequest, ModelLoading, QueueFull
from trefoil.metrics import Metrics


class EngineStream:
    """The events of one request, until every answer has its Done. Closing it early aborts the request."""

    def __init__(self, client: "EngineClient", request: wire.Generate) -> None:
        self._client = client
        self.request = request
        self.started = time.monotonic()
        self.admitted_at: float | None = None
        self.first_token: float | None = None
        self.last_token: float | None = None
        self.span = trace.get_current_span()
        self.num_tokens = 0
        self._open = set(range(request.params.n))
        self._lost: EngineLost | None = None
        self._queue: asyncio.Queue[wire.Event | None] = asyncio.Queue()

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def times(self) -> dict[str, float]:
        """Seconds spent waiting, on the prompt and on the answer, by the names that traces give them."""
        if self.admitted_at is None:
            return {}
        times = {"gen_ai.latency.time_in_queue": max(self.admitted_at - self.started, 0.0)}
        if self.first_token is None or self.last_token is None:
            return times
        decode = self.last_token - self.first_token
        return {
            **times,
            "gen_ai.latency.time_in_model_prefill": self.first_token - self.admitted_at,
            "gen_ai.latency.time_in_model_decode": decode,
            "gen_ai.latency.time_in_model_inference": self.last_token - self.admitted_at,
            "gen_ai.latency.time_per_output_token": decode / max(self.num_tokens - self.request.params.n, 1),
        }

    def put(self, event: wire.Event) -> None:
        """The client heard something for this request."""
        self._queue.put_nowait(event)

    def lose(self, error: EngineLost) -> None:
        """The engine is gone; whoever listens hears it next."""
        self._lost = error
        self._open.clear()
        self._queue.put_nowait(None)

    def __aiter__(self) -> "EngineStream":
        return self

    async def __anext__(self) -> wire.Event:
        """The next event. Raises EngineLost, or InvalidRequest where the engine refused the request."""
        if not self._open and not self._lost:
            raise StopAsyncIteration
        event = None if self._lost else await self._queue.get()
        if event is None:
            raise self._lost or EngineLost("the engine is gone")
        match event:
            case wire.Failed():
                self._finish(set(self._open), "error")
                raise InvalidRequest(event.message)
            case wire.Done():
                self.admitted_at = event.admitted_at
                self._finish({event.index}, event.reason)
        return event

    def stop(self, index: int) -> None:
        """One answer is complete before the engine thinks so."""
        if index in self._open:
            self._client.send(wire.Abort(self.request.id, index))
            self._finish({index}, "stop")

    def close(self) -> None:
        """Whoever asked is gone, or has all it wants."""
        if self._open:
            self._client.send(wire.Abort(self.request.id))
            self._finish(set(self._open), "abort")

    def _finish(self, indices: set[int], reason: str) -> None:
        self._open -= indices
        self._client.finished(self, len(indices), reason)


class EngineCall:
    """Requests that are each answered by one Scores; together they take one place in the queue."""

    def __init__(self, requests: Sequence[wire.Once]) -> None:
        self.started = time.monotonic()
        loop = asyncio.get_running_loop()
        self.requests = requests
        self.answers: dict[str, asyncio.Future[wire.Scores]] = {
            request.id: loop.create_future() for request in requests
        }
        self.num_open = 1

    def put(self, event: wire.Event) -> None:
        """The client heard the answer to one of the requests."""
        answer = self.answers[event.id]
        if answer.done():
            return
        match event:
            case wire.Scores():
                answer.set_result(event)
            case wire.Failed():
                answer.set_exception(InvalidRequest(event.message))

    def lose(self, error: EngineLost) -> None:
        """The engine is gone; every request without an answer fails."""
        self.num_open = 0
        for answer in self.answers.values():
            if not answer.done():
                answer.set_exception(error)


class EngineClient:
    """Requests in flight at one engine; counts them, so that a full queue is refused at once."""

    def __init__(self, name: str, *, capacity: int, max_queued: int, metrics: Metrics) -> None:
        self.name = name
        self.ready: wire.Ready | None = None
        self.about: wire.Ready | None = None  # what it last said of itself, also while it is being started again
        self.adapters: dict[str, str] = {}
        self._capacity, self._limit = capacity, capacity + max_queued
        self._metrics = metrics
        metrics.introduce(name)
        self._streams: dict[str, EngineStream | EngineCall] = {}
        self._num_open = 0
        self._stats = wire.Stats()
        self._socket: zmq.asyncio.Socket | None = None
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(wire.Message)

    @property
    def num_open(self) -> int:
        """Answers asked for and not ended."""
        return self._num_open

    def generate(self, request: wire.Generate) -> EngineStream:
        """Submit a request. Raises ModelLoading, QueueFull, or InvalidRequest where `n` can never fit."""
        if request.params.n > self._limit:
            raise InvalidRequest(f"n = {request.params.n} is more than the server's {self._limit} places", param="n")
        self._admit(request.params.n)
        stream = EngineStream(self, request)
        self._streams[request.id] = stream
        self.send(request)
        return stream

    async def once(self, requests: Sequence[wire.Once]) -> list[wire.Scores]:
        """Ask, and wait for all answers in order. Raises ModelLoading, QueueFull, EngineLost, InvalidRequest.

        Whoever stops waiting takes back what the engine has not begun.
        """
        self._admit(1)
        call = EngineCall(requests)
        self._streams.update(dict.fromkeys(call.answers, call))
        reason = "abort"
        try:
            for request in requests:
                self.send(request)
            answers = [await answer for answer in call.answers.values()]
            reason = "stop"
            return answers
        finally:
            self._end(call, reason)

    def load_adapter(self, name: str, folder: str) -> None:
        """Let requests name this adapter, now and after every new start of the engine."""
        self.adapters[name] = folder
        self.send(wire.LoadAdapter(name, folder))

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter."""
        if self.adapters.pop(name, None) is not None:
            self.send(wire.UnloadAdapter(name))

    def _admit(self, count: int) -> None:
        """Take places in the queue."""
        if self.ready is None or self._socket is None:
            raise ModelLoading(f"the model {self.name} is still loading; try again shortly", param="model")
        if self._num_open + count > self._limit:
            raise QueueFull(f"{self._num_open} requests are in line for {self.name} already; try again later")
        self._num_open += count

    def _end(self, call: EngineCall, reason: str) -> None:
        """The call has its answers, or nobody waits for them any more."""
        for request_id, answer in call.answers.items():
            self._streams.pop(request_id, None)
            if not answer.done():
                self.send(wire.Abort(request_id))
            elif not answer.cancelled():
                answer.exception()  # looked at, so that nobody warns
        if call.num_open:
            self._num_open -= call.num_open
            self._metrics.finished.labels(self.name, reason).inc()
            self._metrics.e2e_latency.labels(self.name).observe(time.monotonic() - call.started)
            self._metrics.request_prompt_tokens.labels(self.name).observe(sum(len(r.ids) for r in call.requests))

    def send(self, command: wire.Command) -> None:
        """Hand a command to the engine, if there is one."""
        if self._socket is not None:
            self._socket.send(self._encoder.encode(command))

    def finished(self, stream: EngineStream, count: int, reason: str) -> None:
        """A stream's answers ended; their places are free."""
        self._num_open -= count
        self._metrics.finished.labels(self.name, reason).inc(count)
        if not stream.num_open:
            self._streams.pop(stream.request.id, None)
            self._observe(stream, time.monotonic())

    async def listen(
        self, inbox: zmq.asyncio.Socket, outbox: zmq.asyncio.Socket, on_start: Callable[[wire.Message], None]
    ) -> None:
        """Take an engine's messages until cancelled; `on_start` hears Checked, Ready and Refused."""
        self._socket = inbox
        for name, folder in self.adapters.items():
            self.send(wire.LoadAdapter(name, folder))
        while True:
            message = self._decoder.decode(await outbox.recv())
            match message:
                case wire.Batch():
                    self._take(message)
                case wire.Ready():
                    self.ready = self.about = message
                    self._stats = wire.Stats()
                    self._metrics.cache_config.labels(self.name, str(message.page_size), str(message.num_pages)).set(1)
                    on_start(message)
                case _:
                    on_start(message)

    def lose(self, why: str) -> None:
        """The engine is gone: every request fails now, each with its own error."""
        self.ready, self._socket = None, None
        streams, self._streams = self._streams, {}
        self._num_open = 0
        for stream in dict.fromkeys(streams.values()):
            self._metrics.finished.labels(self.name, "error").inc(stream.num_open)
            stream.lose(EngineLost(why))
        for gauge in (self._metrics.running, self._metrics.waiting, self._metrics.cache_usage):
            gauge.labels(self.name).set(0)

    def _take(self, batch: wire.Batch) -> None:
        now = time.monotonic()
        for event in batch.events:
            stream = self._streams.get(event.id)
            if stream is None:
                continue
            if isinstance(event, wire.Tokens) and isinstance(stream, EngineStream):
                stream.num_tokens += len(event.ids)
                self._clock(stream, now)
            stream.put(event)
        self._count(batch.stats)

    def _observe(self, stream: EngineStream, now: float) -> None:
        """A request has ended: what it asked for, what it got, where its time went."""
        metrics, params = self._metrics, stream.request.params
        metrics.e2e_latency.labels(self.name).observe(now - stream.started)
        metrics.request_prompt_tokens.labels(self.name).observe(wire.prompt_len(stream.request))
        metrics.request_generated_tokens.labels(self.name).observe(stream.num_tokens)
        metrics.request_max_tokens.labels(self.name).observe(params.max_tokens)
        metrics.request_n.labels(self.name).observe(params.n)
        times = stream.times
        for name, histogram in (
            ("gen_ai.latency.time_in_queue", metrics.queue_time),
            ("gen_ai.latency.time_in_model_prefill", metrics.prefill_time),
            ("gen_ai.latency.time_in_model_decode", metrics.decode_time),
            ("gen_ai.latency.time_in_model_inference", metrics.inference_time),
            ("gen_ai.latency.time_per_output_token", metrics.time_per_token),
        ):
            if name in times:
                histogram.labels(self.name).observe(times[name])
        stream.span.set_attributes(
            {
                "gen_ai.response.model": self.name,
                "gen_ai.usage.input_tokens": wire.prompt_len(stream.request),
                "gen_ai.usage.output_tokens": stream.num_tokens,
                "gen_ai.latency.e2e": now - stream.started,
                **times,
            }
        )

    def _clock(self, stream: EngineStream, now: float) -> None:
        if stream.last_token is None:
            self._metrics.time_to_first_token.labels(self.name).observe(now - stream.started)
        else:
            self._metrics.inter_token_latency.labels(self.name).observe(now - stream.last_token)
        stream.last_token = now
        stream.first_token = stream.first_token or now

    def _count(self, stats: wire.Stats) -> None:
        metrics, before, self._stats = self._metrics, self._stats, stats
        metrics.running.labels(self.name).set(stats.running)
        metrics.waiting.labels(self.name).set(stats.waiting)
        metrics.cache_usage.labels(self.name).set(stats.pages_used / max(stats.pages_total, 1))
        for counter, now, then in (
            (metrics.prefix_queries, stats.prefix_queries, before.prefix_queries),
            (metrics.prefix_hits, stats.prefix_hits, before.prefix_hits),
            (metrics.preemptions, stats.preemptions, before.preemptions),
            (metrics.prompt_tokens, stats.prompt_tokens, before.prompt_tokens),
            (metrics.generated_tokens, stats.generated_tokens, before.generated_tokens),
        ):
            counter.labels(self.name).inc(now - then)
