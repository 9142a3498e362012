"""A typed client of trefoil, synchronous and asynchronous."""

from trefoil_client import calls, types
from trefoil_client.client import AsyncStream, AsyncTrefoil, Stream, Trefoil
from trefoil_client.errors import (
    ConnectionFailed,
    InvalidRequest,
    JobFailed,
    NotAuthenticated,
    NotFound,
    RateLimited,
    Refused,
    ServerFailed,
    TimedOut,
    TrefoilError,
    Unavailable,
    UnreadableAnswer,
    WrongState,
)
from trefoil_client.retries import Retries

__all__ = [
    "AsyncStream",
    "AsyncTrefoil",
    "ConnectionFailed",
    "InvalidRequest",
    "JobFailed",
    "NotAuthenticated",
    "NotFound",
    "RateLimited",
    "Refused",
    "Retries",
    "ServerFailed",
    "Stream",
    "TimedOut",
    "Trefoil",
    "TrefoilError",
    "Unavailable",
    "UnreadableAnswer",
    "WrongState",
    "calls",
    "types",
]
