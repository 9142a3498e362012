"""When to try again, and how long to wait: a pure rule over what went wrong."""

from dataclasses import dataclass

import httpx

from trefoil_client.errors import Refused

NOT_DONE = frozenset({429, 503})
"""The server says that it did nothing with the request."""
PERHAPS_DONE = frozenset({500, 502, 504})


@dataclass(frozen=True, slots=True)
class Retries:
    """`most` more attempts, each twice as late as the one before it, or as late as the server asks for.

    An error that asks for more than `longest_s` is raised at once.
    """

    most: int = 3
    first_s: float = 0.5
    longest_s: float = 60.0

    def wait(self, attempt: int, error: Exception, *, is_safe: bool, chance: float) -> float | None:
        """Seconds before the next attempt; None: there is none. `chance` in 0..1 spreads many clients' waits.

        A request that the server may have done already is only sent again where that is safe.
        """
        if attempt >= self.most or not self._can_help(error, is_safe):
            return None
        asked = error.retry_after_s if isinstance(error, Refused) else None
        if asked is not None:
            return asked if asked <= self.longest_s else None
        return min(self.first_s * 2**attempt, self.longest_s) * (0.5 + chance / 2)

    def _can_help(self, error: Exception, is_safe: bool) -> bool:
        match error:
            case Refused():
                return error.status in NOT_DONE or (is_safe and error.status in PERHAPS_DONE)
            case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.PoolTimeout():
                return True
            case httpx.TransportError():
                return is_safe
        return False
