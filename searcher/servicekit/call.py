"""One request to a direct route, and the reply to it."""

from collections.abc import Sequence
from typing import NamedTuple

from starlette.types import Scope

from searcher.contracts.errors import InvalidInput

_TIMEOUT_HEADER = b"x-request-timeout"
_LONGEST_SECONDS = 3_600.0


class Call:
    """What was asked."""

    def __init__(self, scope: Scope, body: bytes) -> None:
        self._scope, self.body = scope, body

    @property
    def query_string(self) -> str:
        return str(self._scope["query_string"], "latin-1")

    @property
    def has_deadline(self) -> bool:
        """Whether the caller says how long it waits."""
        return any(name == _TIMEOUT_HEADER for name, _ in self._scope["headers"])

    def deadline_seconds(self, default: float) -> float:
        """What the caller allows: the header X-Request-Timeout, in seconds. Raises InvalidInput."""
        for name, value in self._scope["headers"]:
            if name == _TIMEOUT_HEADER:
                return _seconds(value)
        return default


def _seconds(value: bytes) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = float("nan")
    if not 0.0 < seconds <= _LONGEST_SECONDS:
        raise InvalidInput(
            f"header.X-Request-Timeout: {value.decode('latin-1')!r} is not a number of seconds above 0 and up to 3600"
        )
    return seconds


class Reply(NamedTuple):
    """What is answered: a whole response."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    content: bytes
