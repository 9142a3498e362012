"""What can go wrong, as a tree.

TrefoilError
  ConnectionFailed     the server was not reached, or the connection broke
    TimedOut           nothing came for as long as the client was told to wait
  UnreadableAnswer     the answer is not what this client knows
  JobFailed            the job that was waited for did not succeed
  Refused              the server answered with an error; all that it said is here
    InvalidRequest     400, 408, 413: the request has to change; `param` names the field
    NotAuthenticated   401
    NotFound           404
    WrongState         409
    RateLimited        429: a rate limit or a full queue, also after the retries
    ServerFailed       5xx
      Unavailable      503: loading, restarting or shutting down
"""


class TrefoilError(Exception):
    """Every error of this client."""


class ConnectionFailed(TrefoilError):
    pass


class TimedOut(ConnectionFailed):
    pass


class UnreadableAnswer(TrefoilError):
    pass


class JobFailed(TrefoilError):
    def __init__(self, job_id: str, status: str, message: str) -> None:
        super().__init__(f"{job_id} is {status}" + (f": {message}" if message else ""))
        self.job_id, self.status = job_id, status


class Refused(TrefoilError):
    """The server's error: its status, message, kind, code, the field it objects to, and the request's id."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        kind: str | None = None,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{status}: {message}" + (f" [request {request_id}]" if request_id else ""))
        self.message, self.status = message, status
        self.kind, self.code, self.param = kind, code, param
        self.request_id, self.retry_after_s = request_id, retry_after_s


class InvalidRequest(Refused):
    pass


class NotAuthenticated(Refused):
    pass


class NotFound(Refused):
    pass


class WrongState(Refused):
    pass


class RateLimited(Refused):
    pass


class ServerFailed(Refused):
    pass


class Unavailable(ServerFailed):
    pass


BY_STATUS: dict[int, type[Refused]] = {
    401: NotAuthenticated,
    404: NotFound,
    409: WrongState,
    429: RateLimited,
    503: Unavailable,
}


def refusal(status: int) -> type[Refused]:
    """The class of an answer's status."""
    return BY_STATUS.get(status, ServerFailed if status >= 500 else InvalidRequest)
