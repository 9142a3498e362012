"""The two clients: they send what `calls` builds, try again where `retries` says so, and raise the tree of `errors`.

    with Trefoil("http://127.0.0.1:8000") as client:
        print(client.chat([{"role": "user", "content": "hello"}]).text)

A method that stands here as `sends(calls.x)` takes the arguments of `calls.x` and returns what it reads.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import httpx

from trefoil_client import calls
from trefoil_client import types as t
from trefoil_client.call import Call, StreamCall
from trefoil_client.errors import ConnectionFailed, JobFailed, Refused, TimedOut, UnreadableAnswer, refusal
from trefoil_client.retries import Retries
from trefoil_client.sse import Event, EventDecoder

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
DONE = "[DONE]"
POLL_S = 1.0


def sends(build: Callable[P, Call[T]]) -> Callable[Concatenate["Trefoil", P], T]:
    """A method that sends what `build` makes of its arguments."""

    @wraps(build)
    def method(self: "Trefoil", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.send(build(*args, **kwargs))

    return method


def streams(build: Callable[P, StreamCall[T]]) -> Callable[Concatenate["Trefoil", P], "Stream[T]"]:
    """A method that opens the stream of what `build` makes of its arguments."""

    @wraps(build)
    def method(self: "Trefoil", /, *args: P.args, **kwargs: P.kwargs) -> Stream[T]:
        return self.stream(build(*args, **kwargs))

    return method


def sends_async(build: Callable[P, Call[T]]) -> Callable[Concatenate["AsyncTrefoil", P], Coroutine[Any, Any, T]]:
    """The same, to be awaited."""

    @wraps(build)
    async def method(self: "AsyncTrefoil", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.send(build(*args, **kwargs))

    return method


def streams_async(
    build: Callable[P, StreamCall[T]],
) -> Callable[Concatenate["AsyncTrefoil", P], Coroutine[Any, Any, "AsyncStream[T]"]]:
    """The same, to be awaited and then iterated."""

    @wraps(build)
    async def method(self: "AsyncTrefoil", /, *args: P.args, **kwargs: P.kwargs) -> AsyncStream[T]:
        return await self.stream(build(*args, **kwargs))

    return method


class Stream(Generic[T]):
    """Events as they come. Leaving the `with`, or the end, closes the connection, and the server stops working."""

    def __init__(self, response: httpx.Response, call: StreamCall[T]) -> None:
        self._response, self._call = response, call
        self._reading = self._read()

    def __iter__(self) -> Iterator[T]:
        return self._reading

    def __next__(self) -> T:
        return next(self._reading)

    def __enter__(self) -> "Stream[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Want no more of it."""
        self._reading.close()
        self._response.close()

    def _read(self) -> Generator[T]:
        decoder, is_ended = EventDecoder(), not self._call.has_end
        try:
            for chunk in self._response.iter_bytes():
                for event in decoder.feed(chunk):
                    if event.data == DONE:
                        return
                    yield self._call.read(_checked(event, self._response))
        except httpx.TransportError as error:
            raise _broken(error) from error
        finally:
            self._response.close()
        if not is_ended:
            raise ConnectionFailed("the stream ended before the answer did")


class AsyncStream(Generic[T]):
    """The same, asynchronous."""

    def __init__(self, response: httpx.Response, call: StreamCall[T]) -> None:
        self._response, self._call = response, call
        self._reading = self._read()

    def __aiter__(self) -> AsyncIterator[T]:
        return self._reading

    async def __anext__(self) -> T:
        return await anext(self._reading)

    async def __aenter__(self) -> "AsyncStream[T]":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Want no more of it."""
        await self._reading.aclose()
        await self._response.aclose()

    async def _read(self) -> AsyncGenerator[T]:
        decoder, is_ended = EventDecoder(), not self._call.has_end
        try:
            async for chunk in self._response.aiter_bytes():
                for event in decoder.feed(chunk):
                    if event.data == DONE:
                        return
                    yield self._call.read(_checked(event, self._response))
        except httpx.TransportError as error:
            raise _broken(error) from error
        finally:
            await self._response.aclose()
        if not is_ended:
            raise ConnectionFailed("the stream ended before the answer did")


class Routes:
    """Where a client sends to, with what key, how patiently."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        retries: Retries | None = None,
    ) -> None:
        """What is not given comes from TREFOIL_URL and TREFOIL_API_KEY. `timeout_s`: the longest silence."""
        self.url = (url or os.environ.get("TREFOIL_URL") or DEFAULT_URL).rstrip("/")
        key = api_key or os.environ.get("TREFOIL_API_KEY", "").partition(" ")[0]
        self.headers = {"authorization": f"Bearer {key}"} if key else {}
        self.timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0))
        self.retries = retries or Retries()


class Trefoil(Routes):
    """The synchronous client; close it, or use it in a `with`."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        retries: Retries | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(url, api_key=api_key, timeout_s=timeout_s, retries=retries)
        self._http = httpx.Client(base_url=self.url, headers=self.headers, timeout=self.timeout, transport=transport)
        self._sleep = sleep

    def __enter__(self) -> "Trefoil":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, call: Call[T]) -> T:
        """Send any call and read its answer. Raises TrefoilError."""
        for attempt in range(self.retries.most + 1):
            try:
                response = self._http.request(call.method, call.path, **_request(call))
                if response.is_success or response.status_code in call.also:
                    return call.read(response.content)
                raise _refused(response)
            except (Refused, httpx.TransportError) as error:
                self._sleep(_wait(self.retries, attempt, error, is_safe=call.is_safe))
        raise AssertionError("the last attempt raises")

    def stream(self, call: StreamCall[T]) -> Stream[T]:
        """Open any stream; it is not opened again once it has begun. Raises TrefoilError."""
        for attempt in range(self.retries.most + 1):
            try:
                request = self._http.build_request(call.method, call.path, json=call.body, headers=call.headers)
                response = self._http.send(request, stream=True)
                if response.is_success:
                    return Stream(response, call)
                response.read()
                raise _refused(response)
            except (Refused, httpx.TransportError) as error:
                self._sleep(_wait(self.retries, attempt, error, is_safe=call.method == "GET"))
        raise AssertionError("the last attempt raises")

    def follow(self, job_id: str) -> Iterator[t.JobEvent]:
        """Every event of a job until it has ended, over connections that may break."""
        last_id: str | None = None
        while True:
            try:
                for seen, event in self.stream_job_events(job_id, last_id=last_id):
                    last_id = seen
                    yield event
            except ConnectionFailed:
                self._sleep(self.retries.first_s)
            if self.job(job_id).is_ended:
                return

    def wait(self, job_id: str) -> t.Job:
        """Wait for a job's success. Raises JobFailed where it ends otherwise."""
        while not (job := self.job(job_id)).is_ended:
            self._sleep(POLL_S)
        return _succeeded(job)

    chat = sends(calls.chat)
    stream_chat = streams(calls.stream_chat)
    complete = sends(calls.complete)
    stream_complete = streams(calls.stream_complete)
    embed = sends(calls.embed)
    rerank = sends(calls.rerank)
    classify = sends(calls.classify)
    tag = sends(calls.tag)
    answer = sends(calls.answer)
    fill = sends(calls.fill)
    fill_spans = sends(calls.fill_spans)
    features = sends(calls.features)
    similarity = sends(calls.similarity)
    zero_shot = sends(calls.zero_shot)
    generate = sends(calls.generate)
    stream_generate = streams(calls.stream_generate)
    summarize = sends(calls.summarize)
    translate = sends(calls.translate)
    rewrite = sends(calls.rewrite)
    next_sentence = sends(calls.next_sentence)
    sentence_order = sends(calls.sentence_order)
    perplexity = sends(calls.perplexity)
    reward = sends(calls.reward)
    tokenize = sends(calls.tokenize)
    detokenize = sends(calls.detokenize)
    plan_kv_cache = sends(calls.plan_kv_cache)
    plan_scaling = sends(calls.plan_scaling)
    models = sends(calls.models)
    model = sends(calls.model)
    load_model = sends(calls.load_model)
    unload_model = sends(calls.unload_model)
    delete_model = sends(calls.delete_model)
    upload_file = sends(calls.upload_file)
    upload_rows = sends(calls.upload_rows)
    files = sends(calls.files)
    file = sends(calls.file)
    file_content = sends(calls.file_content)
    delete_file = sends(calls.delete_file)
    create_job = sends(calls.create_job)
    jobs = sends(calls.jobs)
    job = sends(calls.job)
    cancel_job = sends(calls.cancel_job)
    pause_job = sends(calls.pause_job)
    resume_job = sends(calls.resume_job)
    job_events = sends(calls.job_events)
    stream_job_events = streams(calls.stream_job_events)
    checkpoints = sends(calls.checkpoints)
    is_alive = sends(calls.is_alive)
    ready = sends(calls.ready)
    metrics = sends(calls.metrics)
    version = sends(calls.version)


class AsyncTrefoil(Routes):
    """The asynchronous client; close it, or use it in an `async with`."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> None:
        super().__init__(url, api_key=api_key, timeout_s=timeout_s, retries=retries)
        self._http = httpx.AsyncClient(
            base_url=self.url, headers=self.headers, timeout=self.timeout, transport=transport
        )
        self._sleep = sleep

    async def __aenter__(self) -> "AsyncTrefoil":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """Send any call and read its answer. Raises TrefoilError."""
        for attempt in range(self.retries.most + 1):
            try:
                response = await self._http.request(call.method, call.path, **_request(call))
                if response.is_success or response.status_code in call.also:
                    return call.read(response.content)
                raise _refused(response)
            except (Refused, httpx.TransportError) as error:
                await self._sleep(_wait(self.retries, attempt, error, is_safe=call.is_safe))
        raise AssertionError("the last attempt raises")

    async def stream(self, call: StreamCall[T]) -> AsyncStream[T]:
        """Open any stream; it is not opened again once it has begun. Raises TrefoilError."""
        for attempt in range(self.retries.most + 1):
            try:
                request = self._http.build_request(call.method, call.path, json=call.body, headers=call.headers)
                response = await self._http.send(request, stream=True)
                if response.is_success:
                    return AsyncStream(response, call)
                await response.aread()
                raise _refused(response)
            except (Refused, httpx.TransportError) as error:
                await self._sleep(_wait(self.retries, attempt, error, is_safe=call.method == "GET"))
        raise AssertionError("the last attempt raises")

    async def follow(self, job_id: str) -> AsyncIterator[t.JobEvent]:
        """Every event of a job until it has ended, over connections that may break."""
        last_id: str | None = None
        while True:
            try:
                async for seen, event in await self.stream_job_events(job_id, last_id=last_id):
                    last_id = seen
                    yield event
            except ConnectionFailed:
                await self._sleep(self.retries.first_s)
            if (await self.job(job_id)).is_ended:
                return

    async def wait(self, job_id: str) -> t.Job:
        """Wait for a job's success. Raises JobFailed where it ends otherwise."""
        while not (job := await self.job(job_id)).is_ended:
            await self._sleep(POLL_S)
        return _succeeded(job)

    chat = sends_async(calls.chat)
    stream_chat = streams_async(calls.stream_chat)
    complete = sends_async(calls.complete)
    stream_complete = streams_async(calls.stream_complete)
    embed = sends_async(calls.embed)
    rerank = sends_async(calls.rerank)
    classify = sends_async(calls.classify)
    tag = sends_async(calls.tag)
    answer = sends_async(calls.answer)
    fill = sends_async(calls.fill)
    fill_spans = sends_async(calls.fill_spans)
    features = sends_async(calls.features)
    similarity = sends_async(calls.similarity)
    zero_shot = sends_async(calls.zero_shot)
    generate = sends_async(calls.generate)
    stream_generate = streams_async(calls.stream_generate)
    summarize = sends_async(calls.summarize)
    translate = sends_async(calls.translate)
    rewrite = sends_async(calls.rewrite)
    next_sentence = sends_async(calls.next_sentence)
    sentence_order = sends_async(calls.sentence_order)
    perplexity = sends_async(calls.perplexity)
    reward = sends_async(calls.reward)
    tokenize = sends_async(calls.tokenize)
    detokenize = sends_async(calls.detokenize)
    plan_kv_cache = sends_async(calls.plan_kv_cache)
    plan_scaling = sends_async(calls.plan_scaling)
    models = sends_async(calls.models)
    model = sends_async(calls.model)
    load_model = sends_async(calls.load_model)
    unload_model = sends_async(calls.unload_model)
    delete_model = sends_async(calls.delete_model)
    upload_file = sends_async(calls.upload_file)
    upload_rows = sends_async(calls.upload_rows)
    files = sends_async(calls.files)
    file = sends_async(calls.file)
    file_content = sends_async(calls.file_content)
    delete_file = sends_async(calls.delete_file)
    create_job = sends_async(calls.create_job)
    jobs = sends_async(calls.jobs)
    job = sends_async(calls.job)
    cancel_job = sends_async(calls.cancel_job)
    pause_job = sends_async(calls.pause_job)
    resume_job = sends_async(calls.resume_job)
    job_events = sends_async(calls.job_events)
    stream_job_events = streams_async(calls.stream_job_events)
    checkpoints = sends_async(calls.checkpoints)
    is_alive = sends_async(calls.is_alive)
    ready = sends_async(calls.ready)
    metrics = sends_async(calls.metrics)
    version = sends_async(calls.version)


def _request(call: Call[Any]) -> dict[str, Any]:
    """What httpx is given."""
    given = {"json": call.body, "params": call.query, "files": call.files, "data": call.form}
    return {name: value for name, value in given.items() if value is not None}


def _wait(retries: Retries, attempt: int, error: Exception, *, is_safe: bool) -> float:
    """Seconds before the next attempt; raises what stands in its way."""
    wait = retries.wait(attempt, error, is_safe=is_safe, chance=random.random())
    if wait is not None:
        return wait
    if isinstance(error, httpx.TransportError):
        raise _broken(error) from error
    raise error


def _broken(error: httpx.TransportError) -> ConnectionFailed:
    kind = TimedOut if isinstance(error, httpx.TimeoutException) else ConnectionFailed
    try:
        where = f"{error.request.url.copy_with(path='/', query=None)}: "
    except RuntimeError:  # httpx knows of no request
        where = ""
    return kind(where + (str(error) or type(error).__name__))


def _refused(response: httpx.Response) -> Refused:
    """The error that an answer is."""
    try:
        told = response.json()["error"]
        message = str(told["message"])
    except (ValueError, LookupError, TypeError):
        told, message = {}, response.text[:200] or response.reason_phrase
    return _error(told, message, response, response.status_code)


def _checked(event: Event, response: httpx.Response) -> Event:
    """The event, unless it is the error that ends a stream."""
    if '"error"' in event.data[:12]:
        try:
            told = json.loads(event.data)["error"]
        except (ValueError, LookupError, TypeError) as error:
            raise UnreadableAnswer("an event of the stream is no JSON") from error
        raise _error(told, str(told["message"]), response, 503)
    return event


def _error(told: Mapping[str, Any], message: str, response: httpx.Response, status: int) -> Refused:
    after = response.headers.get("retry-after", "")
    return refusal(status)(
        message,
        status=status,
        kind=told.get("type"),
        code=told.get("code"),
        param=told.get("param"),
        request_id=response.headers.get("x-request-id"),
        retry_after_s=float(after) if after.isdigit() else None,
    )


def _succeeded(job: t.Job) -> t.Job:
    if job.status != "succeeded":
        raise JobFailed(job.id, job.status, (job.error and job.error.message) or "")
    return job
