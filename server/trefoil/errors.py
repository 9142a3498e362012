"""The error tree that users meet. Each has an HTTP status, a stable code, and a message that says what to do.

TrefoilError
  InvalidRequest            400  a field has a value we cannot take; `param` names it as the client wrote it
    RequestTooLong          400  prompt and answer do not fit the model's context
    TextTooLong             400  nor does a prompt of so many characters, however it is cut into tokens
    NotImplementedHere      400  a field of the contract that this version refuses by name
    WrongTask               400  the model cannot do what the route offers
    RefusedUpstream         400  another server that answers for a model refused the request
  NotAuthenticated          401  no key or a wrong one
  ModelNotFound             404  no served model has that name
  FileNotFound              404  no upload has that id
  JobNotFound               404  no training job has that id
  WrongState                409  what is asked for cannot be done now
  BodyTooLarge              413  the request body exceeds the limit
  BodyTooSlow               408  the request body stopped coming
  HeadTooLarge              431  the request's head exceeds the limit
  HeadTooSlow               408  the request's head did not come in time
  QueueFull                 429  too many requests wait already
  RateLimited               429  this key has used its requests for now
  ModelLoading              503  the model is not ready yet
  EngineLost                503  the engine died or shut down under the request
    UpstreamLost            503  another server that answers for a model does not, or not as it should
  DatabaseAway              503  the database does not answer
  RequestTimedOut           504  the answer took longer than the server allows
  NotStored                 507  what was sent cannot be kept: the disk is full, or may not be written
"""

from typing import ClassVar


def is_panic(error: BaseException) -> bool:
    """A library written in Rust gave up, which Python is not told by an Exception."""
    return type(error).__name__ == "PanicException"


class InvalidSetting(ValueError):
    """A flag or variable with a value that cannot be; said in one line before anything starts."""

    def __init__(self, flag: str, value: str, allowed: str) -> None:
        super().__init__(f"{flag} {value}: must be {allowed}")


class TrefoilError(Exception):
    """A failure with an answer for the client."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = "internal_error"
    retry_after_s: int | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """The one shape of every error answer."""
        return error_body(self.message, self.type, self.param, self.code)


def error_body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, dict[str, str | None]]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class InvalidRequest(TrefoilError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class RequestTooLong(InvalidRequest):
    code = "context_length_exceeded"

    def __init__(self, prompt_len: int, answer_len: int, limit: int, *, param: str) -> None:
        asked = f"{prompt_len} prompt tokens" + (f" and {answer_len} for the answer" if answer_len else "")
        super().__init__(
            f"the model's context is {limit} tokens, the request asks for {asked}; shorten it", param=param
        )


class TextTooLong(InvalidRequest):
    code = RequestTooLong.code

    def __init__(self, num_chars: int, limit: int, *, param: str) -> None:
        super().__init__(
            f"the model's context is {limit} tokens, which cannot hold {num_chars} characters; shorten it", param=param
        )


class NotImplementedHere(InvalidRequest):
    code = "unsupported_parameter"

    def __init__(self, param: str) -> None:
        super().__init__(f"{param} is not supported by this version of the server; leave it out", param=param)


class WrongTask(InvalidRequest):
    code = "wrong_task"


class RefusedUpstream(InvalidRequest):
    """Bears the other server's code, which says more than ours would."""

    def __init__(self, message: str, *, param: str | None, code: str | None) -> None:
        super().__init__(message, param=param)
        self._code = code or InvalidRequest.code

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        return error_body(self.message, self.type, self.param, self._code)


class NotAuthenticated(TrefoilError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class ModelNotFound(TrefoilError):
    status = 404
    type = "not_found_error"
    code = "model_not_found"


class FileNotFound(TrefoilError):
    status = 404
    type = "not_found_error"
    code = "file_not_found"

    def __init__(self, file_id: str, *, param: str | None = None) -> None:
        super().__init__(f"there is no file {file_id[:80]!r}; see GET /v1/files", param=param)


class JobNotFound(TrefoilError):
    status = 404
    type = "not_found_error"
    code = "job_not_found"

    def __init__(self, job_id: str, *, param: str | None = None) -> None:
        super().__init__(f"there is no job {job_id[:80]!r}; see GET /v1/fine_tuning/jobs", param=param)


class WrongState(TrefoilError):
    status = 409
    type = "invalid_request_error"
    code = "wrong_state"


class BodyTooLarge(TrefoilError):
    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class BodyTooSlow(TrefoilError):
    status = 408
    type = "invalid_request_error"
    code = "body_timeout"


class HeadTooLarge(TrefoilError):
    status = 431
    type = "invalid_request_error"
    code = "head_too_large"


class HeadTooSlow(TrefoilError):
    status = 408
    type = "invalid_request_error"
    code = "head_timeout"


class RateLimited(TrefoilError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, rate: str, retry_after_s: int) -> None:
        super().__init__(f"this key may send {rate}; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class QueueFull(TrefoilError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"
    retry_after_s = 1


class ModelLoading(TrefoilError):
    status = 503
    type = "service_unavailable_error"
    code = "model_loading"
    retry_after_s = 2


class EngineLost(TrefoilError):
    status = 503
    type = "service_unavailable_error"
    code = "engine_lost"
    retry_after_s = 2


class UpstreamLost(EngineLost):
    """`why` is for the log."""

    code = "upstream_lost"

    def __init__(self, message: str, *, why: str) -> None:
        super().__init__(message)
        self.why = why


class DatabaseAway(TrefoilError):
    status = 503
    type = "service_unavailable_error"
    code = "database_away"
    retry_after_s = 5


class NotStored(TrefoilError):
    status = 507
    type = "server_error"
    code = "not_stored"


class RequestTimedOut(TrefoilError):
    status = 504
    type = "timeout_error"
    code = "request_timeout"
