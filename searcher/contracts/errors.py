"""One tree of errors and the one form in which they cross a wire.

* SearcherError
  x InvalidInput          422  the request is wrong; sending it again will not help
    + TooLarge            413
    + Unauthorized        401
    + NotFound            404
    + Conflict            409
  x Unavailable           503  the request is fine; try again after `retry_after_seconds`
    + NotReady                 this service is still starting or is shutting down
    + Overloaded               this service has more work than it can finish in time
    + UpstreamUnavailable      a service behind this one did not answer
    + BudgetSpent              asking again costs money that this run does not have

A fact about the model ("nothing found", "wrong format") is never an error. An outage always is.
"""

from pydantic import BaseModel


class ErrorBody(BaseModel):
    """The JSON body of every error response."""

    error: str
    detail: str


class SearcherError(Exception):
    """The root. `status` is the HTTP status under which the error leaves a service."""

    status = 500

    @property
    def detail(self) -> str:
        return str(self)

    def body(self) -> ErrorBody:
        return ErrorBody(error=type(self).__name__, detail=self.detail)


class InvalidInput(SearcherError):
    """The caller must change something; the message names the field, the value and the fix."""

    status = 422


class TooLarge(InvalidInput):
    """A body, list or string is over its limit."""

    status = 413


class Unauthorized(InvalidInput):
    """No bearer token, or not ours."""

    status = 401


class NotFound(InvalidInput):
    """The named run, evaluation, corpus or version does not exist."""

    status = 404


class Conflict(InvalidInput):
    """The thing exists, but not in a state that allows this."""

    status = 409


class Unavailable(SearcherError):
    """Nothing is wrong with the request. Rendered with a Retry-After header."""

    status = 503

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NotReady(Unavailable):
    """The service is starting, draining, or waits for something it cannot serve without."""


class Overloaded(Unavailable):
    """The queue is longer than the caller's deadline."""


class UpstreamUnavailable(Unavailable):
    """A dependency did not answer within its deadline and retries. Never turned into an empty result."""


class BudgetSpent(Unavailable):
    """The run's money is spent. Work waits until somebody raises the budget, or ends the run."""

    def __init__(self, message: str, *, retry_after_seconds: float = 60.0) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
