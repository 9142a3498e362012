"""A model that another server answers for: any that speaks OpenAI's routes, such as vLLM, SGLang or another trefoil.

A request goes there as it came, but for the model's name, and its answer bears ours. Nothing that comes back is
trusted: neither its size nor its shape nor its end. The server's address, our key for it and its mishaps stay here.
"""

import asyncio
import itertools
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from typing import Any

import httpx
import msgspec
import orjson
import structlog

from trefoil import __version__
from trefoil.api.sse import DONE, event
from trefoil.errors import (
    BodyTooLarge,
    ModelLoading,
    QueueFull,
    RefusedUpstream,
    TrefoilError,
    UpstreamLost,
    WrongTask,
)
from trefoil.metrics import Metrics
from trefoil.settings import ModelSource, Settings

log = structlog.get_logger()

MOST_ANSWER = 64 * 2**20
"""Bytes of an answer that comes whole."""
MOST_EVENT = 4 * 2**20
MOST_REFUSAL = 64 * 2**10
MOST_WORDS = 2000
CONNECT_S = 5.0
IDLE_S = 2.0
"""Less than servers keep idle connections, so that none is taken up in the moment in which it is closed."""
LAST_WORDS_S = 1.0
LOOK_S, LOOKS_SAVED = 1.0, 10
"""Between two looks at a server that is away, and how many times as long at one that is there."""
MADE_FOR, TASKS = ("text-generation",), ("text-generation", "embeddings")
"""What servers say of their models is no more than a name."""
KEY_REFUSED = frozenset({401, 403, 407})
SHOWN_MODELS = 20
SHOWN_CAUSE = 300


class UpstreamUnfit(Exception):
    """What answers at the address cannot answer for the model; one line says why."""


class ListedModel(msgspec.Struct):
    """What a server's list says of a model."""

    id: str
    max_model_len: Any = None


class ListedModels(msgspec.Struct):
    data: list[ListedModel]


class RemoteModel:
    """A served model whose engine is another server."""

    def __init__(self, source: ModelSource, settings: Settings, metrics: Metrics) -> None:
        self.name, self.created = source.name, int(time.time())
        self.made_for, self.tasks = MADE_FOR, TASKS
        self.is_up = False
        self.about: ListedModel | None = None
        """What the server last said of the model, which holds while it is away."""
        self._source, self._key = source, settings.upstream_keys.get(source.name)
        self._timeout_s, self._metrics = settings.upstream_timeout, metrics
        self._why_cut: str | None = None
        self._closing: asyncio.Task[None] | None = None
        self._line = Line(source.name, settings.max_num_seqs + settings.max_num_queued_reqs, metrics)
        authorization = {} if self._key is None else {"authorization": f"Bearer {self._key}"}
        self._http = httpx.AsyncClient(
            headers={"accept-encoding": "identity", "user-agent": f"trefoil/{__version__}", **authorization},
            timeout=httpx.Timeout(settings.upstream_timeout, connect=CONNECT_S, pool=None),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=IDLE_S),
        )
        metrics.introduce(self.name)
        metrics.upstream_up.labels(self.name).set(0)

    @property
    def max_model_len(self) -> int | None:
        """Most tokens of prompt and answer, where the server says."""
        told = None if self.about is None else self.about.max_model_len
        return told if isinstance(told, int) else None

    def ask(self, path: str, body: Mapping[str, Any], request_id: str) -> "Exchange":
        """Take a place in line with this request. Raises ModelLoading, QueueFull."""
        if self.about is None or self._http.is_closed:
            raise ModelLoading(f"the server that answers for {self.name} is not there yet; try again", param="model")
        request = self._http.build_request(
            "POST",
            self._source.address + path,
            content=orjson.dumps({**body, "model": self.about.id}),
            headers={"content-type": "application/json", "x-request-id": request_id},
        )
        return Exchange(self, self._line.enter(), request, self._timeout_s)

    async def look(self) -> None:
        """Learn what the server says of the model. Raises UpstreamUnfit; UpstreamLost where it does not answer now."""
        try:
            self.about = self._chosen(await self._listed())
        except UpstreamUnfit as error:
            self._mark_away(str(error))
            raise
        except UpstreamLost as error:
            self._mark_away(error.why)
            raise
        if not self.is_up:
            log.info("upstream_up", model=self.name)
        self.is_up = True
        self._metrics.upstream_up.labels(self.name).set(1)

    async def watch(self) -> None:
        """Look for ever, and more often at a server that is away."""
        for turn in itertools.count(1):
            await asyncio.sleep(LOOK_S)
            if not self.is_up or turn % LOOKS_SAVED == 0:
                with suppress(UpstreamUnfit, UpstreamLost):
                    await self.look()

    def cut(self, why: str) -> None:
        """Fail every running request now."""
        self._why_cut = why
        self._closing = asyncio.create_task(self.close())

    async def close(self) -> None:
        """End every connection."""
        await self._http.aclose()

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Failures of a connection as UpstreamLost."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            self._mark_away(repr(error))
            raise self.lost("cannot be reached", error) from error
        except (httpx.TimeoutException, TimeoutError) as error:
            raise self.lost("does not go on answering", error) from error
        except (httpx.RequestError, httpx.StreamError) as error:
            raise self.lost("broke off", error) from error

    def lost(self, what: str, cause: object) -> UpstreamLost:
        """Words for the client, and the cause for the log."""
        told = self._why_cut or f"the server that answers for {self.name} {what}; try again shortly"
        return UpstreamLost(told, why=self._ours(f"{cause!r}")[:SHOWN_CAUSE])

    def refusal(self, status: int, told: Any, retry_after: str = "") -> TrefoilError:
        """The error for whoever asked: in the server's words where they are about the request."""
        message, param, code = words_of(told)
        message = self._ours(message)
        if status in KEY_REFUSED:
            return self.lost("does not take this server's key", f"{status} {message}")
        if not 400 <= status < 500:
            return self.lost("failed", f"{status} {message}")
        if status == 404:
            log.warning("upstream_refused", model=self.name, status=status, why=message[:SHOWN_CAUSE])
            return WrongTask(f"the server that answers for {self.name} does not do this", param="model")
        message = message or f"the server that answers for {self.name} refused this with status {status}"
        if status == 429:
            full = QueueFull(message)
            full.retry_after_s = int(retry_after) if re.fullmatch(r"[1-9]\d{0,3}", retry_after) else 1
            return full
        if status == 413:
            return BodyTooLarge(message)
        return RefusedUpstream(message, param=param, code=code)

    def _ours(self, message: str) -> str:
        """The server's words without what is its own: its address, our key for it, its name for the model."""
        message = message.replace(self._key, "KEY") if self._key else message
        url = httpx.URL(self._source.address)
        model = "" if self.about is None else self.about.id
        for own in (self._source.address, url.netloc.decode(), url.host, model):
            if own and not own.isalpha():  # a mere word may stand in any sentence
                message = re.sub(rf"(?<![\w.-]){re.escape(own)}(?![\w-])", lambda _: self.name, message)
        return message[:MOST_WORDS]

    def _mark_away(self, why: str) -> None:
        if self.is_up:
            log.warning("upstream_away", model=self.name, why=why)
        self.is_up = False
        self._metrics.upstream_up.labels(self.name).set(0)

    async def send(self, request: httpx.Request, timeout_s: float) -> httpx.Response:
        """The answer's head, which must come whole in that time. Raises UpstreamLost."""
        with self.failures():
            async with asyncio.timeout(timeout_s):
                return await self._http.send(request, stream=True)

    async def _listed(self) -> list[ListedModel]:
        where = f"{self._source.address}/models"
        answer = await self.send(self._http.build_request("GET", where, timeout=CONNECT_S), CONNECT_S)
        try:
            with self.failures():
                async with asyncio.timeout(CONNECT_S):
                    told = await read(answer.aiter_raw(), MOST_EVENT)
        finally:
            await answer.aclose()
        if answer.status_code in KEY_REFUSED:
            raise UpstreamUnfit(f"{where} does not take the key; it is read from TREFOIL_UPSTREAM_API_KEY")
        if answer.status_code == 429 or answer.is_server_error:
            raise self.lost("failed", answer.status_code)
        try:
            return msgspec.json.decode(told or b"", type=ListedModels).data
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise UpstreamUnfit(
                f"{where} answers {answer.status_code} and no list of models; as a rule an address ends in /v1"
            ) from None

    def _chosen(self, listed: list[ListedModel]) -> ListedModel:
        wanted = self._source.upstream_name
        found = [model for model in listed if wanted in (None, model.id)]
        if len(found) == 1:
            return found[0]
        names = ", ".join(model.id for model in listed[:SHOWN_MODELS]) or "none"
        raise UpstreamUnfit(f"name a model of the server as {self._source.address}#MODEL; it lists {names}")


class Line:
    """The requests that a server has from us, up to so many."""

    def __init__(self, model_name: str, limit: int, metrics: Metrics) -> None:
        self.model_name, self.metrics = model_name, metrics
        self._limit, self._num_open = limit, 0

    def enter(self) -> "Place":
        """Raises QueueFull."""
        if self._num_open >= self._limit:
            raise QueueFull(f"{self._num_open} requests are in line for {self.model_name} already; try again later")
        self.move(+1)
        return Place(self)

    def move(self, count: int) -> None:
        """So many more."""
        self._num_open += count
        self.metrics.running.labels(self.model_name).set(self._num_open)


class Place:
    """One request's place in the line, and what is counted of the request."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._started = time.monotonic()
        self._last_event: float | None = None
        self._reason = "abort"
        self._usage: dict[str, Any] = {}
        self._is_held = True

    @contextmanager
    def judged(self) -> Iterator[None]:
        """What fails within is counted as an error."""
        try:
            yield
        except TrefoilError as error:
            self._reason = "error"
            if isinstance(error, UpstreamLost):
                log.warning("upstream_failed", model=self._line.model_name, what=error.message, why=error.why)
            raise

    def note(self, payload: Mapping[str, Any]) -> None:
        """An answer or an event came, with what it says of tokens and of the end."""
        name, metrics, now = self._line.model_name, self._line.metrics, time.monotonic()
        if self._last_event is None:
            metrics.time_to_first_token.labels(name).observe(now - self._started)
        else:
            metrics.inter_token_latency.labels(name).observe(now - self._last_event)
        self._last_event = now
        match payload:
            case {"choices": [*_, {"finish_reason": str(reason)}]}:
                self._reason = "length" if reason == "length" else "stop"
            case {"object": "list"}:
                self._reason = "stop"
        if isinstance(usage := payload.get("usage"), dict):
            self._usage = usage  # some servers tell it in every event, the last is the whole

    def leave(self) -> None:
        """Make room."""
        if not self._is_held:
            return
        self._is_held = False
        self._line.move(-1)
        name, metrics = self._line.model_name, self._line.metrics
        metrics.finished.labels(name, self._reason).inc()
        metrics.e2e_latency.labels(name).observe(time.monotonic() - self._started)
        for counter, field in (
            (metrics.prompt_tokens, "prompt_tokens"),
            (metrics.generated_tokens, "completion_tokens"),
        ):
            count = self._usage.get(field)
            counter.labels(name).inc(count if isinstance(count, int) and count > 0 else 0)


class Exchange:
    """One request and its answer. `end` gives its place back and lets the server know that nobody listens."""

    def __init__(self, model: RemoteModel, place: Place, request: httpx.Request, timeout_s: float) -> None:
        self._model, self._place, self._request, self._timeout_s = model, place, request, timeout_s
        self._answer: httpx.Response | None = None
        self._closing: asyncio.Task[None] | None = None

    async def begin(self) -> "Answer":
        """Send it, and wait until an answer comes. Raises TrefoilError."""
        with self._place.judged():
            self._answer = await self._model.send(self._request, self._timeout_s)
            answer = Answer(self._model, self._place, self._answer)
            await answer.check()
        return answer

    def end(self) -> None:
        """However it ended; whoever asked is gone, or has all it wants."""
        self._place.leave()
        if self._answer is not None and self._closing is None:
            self._closing = asyncio.create_task(self._answer.aclose())


class Answer:
    """What comes back."""

    def __init__(self, model: RemoteModel, place: Place, answer: httpx.Response) -> None:
        self._model, self._place = model, place
        self._status, self._headers, self._raw = answer.status_code, answer.headers, answer.aiter_raw()

    @property
    def is_stream(self) -> bool:
        return self._headers.get("content-type", "").startswith("text/event-stream")

    async def check(self) -> None:
        """Raise TrefoilError where it is none."""
        if self._headers.get("content-encoding", "identity") != "identity":
            raise self._model.lost("answered in a coding that it was not asked for", self._headers["content-encoding"])
        if not httpx.codes.is_success(self._status):
            with self._model.failures():
                told = await read(self._raw, MOST_REFUSAL)
            raise self._model.refusal(self._status, parsed(told or b""), self._headers.get("retry-after", ""))

    async def whole(self) -> dict[str, Any]:
        """All of it, with our name for the model. Raises TrefoilError."""
        with self._place.judged(), self._model.failures():
            told = await read(self._raw, MOST_ANSWER)
            if told is None:
                raise self._model.lost("answered at too great length", MOST_ANSWER)
            return self._ours(told)

    async def events(self) -> AsyncIterator[bytes]:
        """A stream's events with our name for the model, up to the one that ends it. Raises TrefoilError."""
        with self._place.judged(), self._model.failures():
            async with aclosing(self._lines()) as lines:
                async for line in lines:
                    field, _, told = line.partition(b":")
                    if field != b"data":
                        continue
                    if told.strip() == b"[DONE]":
                        yield DONE
                        await self._hear_out()
                        return
                    yield event(self._ours(told))
            raise self._model.lost("broke off", "a stream without its last event")

    async def _lines(self) -> AsyncGenerator[bytes]:
        held = b""
        async for data in self._raw:
            *whole, held = (held + data).split(b"\n")
            for line in whole:
                yield line
            if len(held) > MOST_EVENT:
                raise self._model.lost("answered at too great length", f"a line of more than {MOST_EVENT} bytes")

    async def _hear_out(self) -> None:
        """Wait a moment for the end of a stream, after which its connection serves another request."""
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                async for _ in self._raw:
                    pass
        except (TimeoutError, httpx.HTTPError):
            return

    def _ours(self, told: bytes) -> dict[str, Any]:
        payload = parsed(told)
        if not isinstance(payload, dict):
            raise self._model.lost("answered what is no answer", told[:SHOWN_CAUSE])
        if payload.get("error"):
            raise self._model.refusal(status_of(payload["error"]), payload)
        self._place.note(payload)
        return {**payload, "model": self._model.name}


async def read(chunks: AsyncIterator[bytes], most: int) -> bytes | None:
    """All of it; None where there is more than that."""
    told = bytearray()
    async for chunk in chunks:
        told += chunk
        if len(told) > most:
            return None
    return bytes(told)


def parsed(told: bytes) -> Any:
    """The JSON; None where it is none."""
    try:
        return orjson.loads(told)
    except orjson.JSONDecodeError:
        return None


def words_of(told: Any) -> tuple[str, str | None, str | None]:
    """Message, param and code of an error as servers write it: OpenAI's object, in `error` or bare, or FastAPI's."""
    error = told.get("error", told) if isinstance(told, dict) else None
    match error:
        case {"message": str(message), **more}:
            param, code = more.get("param"), more.get("code")
        case {"detail": [{"msg": str(message), "loc": [*where]}, *_]}:
            param, code = ".".join(map(str, where)), None
        case {"detail": str(message)} | str(message):
            param = code = None
        case _:
            return "", None, None
    return message, written(param) if isinstance(param, str) else None, code if isinstance(code, str) else None


def written(param: str) -> str:
    """A field's name as the client wrote it: `messages[1].role` for FastAPI's `body.messages.1.role`."""
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", param.removeprefix("body."))


def status_of(error: Any) -> int:
    """What an error's status would be that comes in an answer that had begun well."""
    match error:
        case {"code": int(code)}:
            return code
        case {"type": "invalid_request_error" | "BadRequestError"}:
            return 400
    return 500
