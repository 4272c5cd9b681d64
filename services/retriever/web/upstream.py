"""A request to something paid, rate-limited and mortal -> what it answered. Which one to ask is left to chain.py.

breaker -> turn (token bucket) -> money -> request -> what the status means -> answer, or wait and try again
"""

import asyncio
import datetime as dt
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, TypeVar

import structlog

from services.retriever.web import metrics
from services.retriever.web.exchange import ExchangeFailed, Exchanger, NoResponse, Request, Response
from services.retriever.web.limits import Breaker, Budget, Clock, Sleep, TokenBucket

log = structlog.get_logger()

T = TypeVar("T")

MAX_ANSWER_BYTES = 8 * 1024 * 1024
ATTEMPTS = 3
_NO_CREDIT_SECONDS = 300.0
"""How long a provider is left alone that is out of credit or refuses our key: somebody has to do something first."""
_NO_CREDIT = frozenset({402, 432, 433})
"""Payment required; Tavily's own two for a plan and an account that are used up."""
_NO_CREDIT_WORDS = ("not enough credits", "run out of searches", "no_more_credits", "queries per day", "quota_limited")
"""Serper says so with 400, SerpAPI, Brave and Google with 429."""


class Outcome(StrEnum):
    OK = "ok"
    RATE_LIMITED = "rate_limited"
    OUT_OF_CREDIT = "out_of_credit"
    REFUSED = "refused"
    """Our key, or (SearXNG) JSON as such."""
    BAD_REQUEST = "bad_request"
    """This one request, or the address is not the API's."""
    FAILED = "failed"
    """Its error: 5xx, or an answer that says so."""
    MALFORMED = "malformed"
    """Answered, but not in its language: HTML, half a JSON, other fields."""
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    RESTING = "resting"
    """Not asked: it failed too often a moment ago, or its turn would come too late."""


_FINAL = frozenset({Outcome.OUT_OF_CREDIT, Outcome.REFUSED, Outcome.BAD_REQUEST, Outcome.RESTING})
_UNBILLED = frozenset(
    {Outcome.RATE_LIMITED, Outcome.OUT_OF_CREDIT, Outcome.REFUSED, Outcome.BAD_REQUEST, Outcome.UNREACHABLE}
)
_OF_NO_RESPONSE = {
    NoResponse.UNREACHABLE: Outcome.UNREACHABLE,
    NoResponse.TIMEOUT: Outcome.TIMEOUT,
    NoResponse.GARBLED: Outcome.MALFORMED,
    NoResponse.TOO_LARGE: Outcome.MALFORMED,
}


class UpstreamFailed(Exception):
    """One attempt, or all of them. The message holds no URL and no key."""

    def __init__(self, outcome: Outcome, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.outcome, self.retry_after_seconds = outcome, retry_after_seconds


@dataclass(frozen=True)
class Terms:
    """What one upstream costs and bears."""

    usd_per_request: float
    requests_per_second: float
    attempt_seconds: float


class Upstream:
    def __init__(
        self,
        name: str,
        exchanger: Exchanger,
        terms: Terms,
        *,
        budget: Budget,
        breaker: Breaker | None = None,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.name, self.terms = name, terms
        self.breaker = breaker or Breaker(clock=clock)
        self._exchanger, self._budget = exchanger, budget
        self._bucket = TokenBucket(terms.requests_per_second, clock=clock, sleep=sleep)
        self._clock, self._sleep = clock, sleep

    async def ask(self, request: Request, read: Callable[[Any], T], *, until: float) -> T:
        """`read` of the answered JSON; it raises ValueError for what it does not understand.

        Tries again, as late as asked to, before `until` (of the clock). Raises UpstreamFailed or BudgetSpent.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._attempt(request, read, until)
            except UpstreamFailed as failure:
                wait_seconds = failure.retry_after_seconds or random.uniform(0.5, 1.0) * 0.5 * 2 ** (attempt - 1)
                is_last = attempt == ATTEMPTS or failure.outcome in _FINAL
                if is_last or self._clock() + wait_seconds >= until:
                    if self.breaker.is_open:
                        asked_seconds = failure.retry_after_seconds or 0.0
                        failure.retry_after_seconds = max(asked_seconds, self.breaker.seconds_to_trial)
                    raise
                log.info("web retry", provider=self.name, outcome=failure.outcome, seconds=round(wait_seconds, 2))
            await self._sleep(wait_seconds)
        raise AssertionError("unreachable: the last attempt raises")

    async def _attempt(self, request: Request, read: Callable[[Any], T], until: float) -> T:
        await self._turn(until)
        self._budget.reserve(self.terms.usd_per_request, what=f"a request to {self.name}")
        outcome = Outcome.TIMEOUT  # if we are cancelled, it was asked and may be billed
        try:
            with metrics.REQUEST_SECONDS.labels(self.name).time():
                answer = await self._answer(request, read, until)
            outcome = Outcome.OK
            return answer
        except UpstreamFailed as failure:
            outcome = failure.outcome
            self._remember(failure)
            raise
        finally:
            self._account(outcome)

    async def _turn(self, until: float) -> None:
        if not self.breaker.admits():
            seconds = self.breaker.seconds_to_trial
            raise UpstreamFailed(Outcome.RESTING, f"rests for {seconds:.0f} s", retry_after_seconds=seconds)
        if (seconds := self._bucket.wait_seconds) > until - self._clock():
            detail = f"its next turn is in {seconds:.1f} s (RETRIEVER_WEB_REQUESTS_PER_SECOND)"
            raise UpstreamFailed(Outcome.RESTING, detail, retry_after_seconds=seconds)
        await self._bucket.take()

    async def _answer(self, request: Request, read: Callable[[Any], T], until: float) -> T:
        seconds = max(0.001, min(self.terms.attempt_seconds, until - self._clock()))
        try:
            response = await self._exchanger.exchange(request, max_bytes=MAX_ANSWER_BYTES, seconds=seconds)
        except ExchangeFailed as error:
            raise UpstreamFailed(_OF_NO_RESPONSE[error.why], str(error)) from error
        _raise_for_status(response)
        try:
            return read(json.loads(response.content))
        except (ValueError, RecursionError) as error:  # of JSON and of `read`
            raise UpstreamFailed(Outcome.MALFORMED, f"answered what is not understood: {_short(error)}") from error

    def _remember(self, failure: UpstreamFailed) -> None:
        if failure.outcome in (Outcome.OUT_OF_CREDIT, Outcome.REFUSED):
            self.breaker.trip(_NO_CREDIT_SECONDS)
        elif failure.outcome is Outcome.RATE_LIMITED:
            self._bucket.hold(failure.retry_after_seconds or 1.0)
        elif failure.outcome is not Outcome.BAD_REQUEST:
            self.breaker.failed()

    def _account(self, outcome: Outcome) -> None:
        if outcome is Outcome.OK:
            self.breaker.succeeded()
        if outcome in _UNBILLED:
            self._budget.refund(self.terms.usd_per_request)
        else:
            metrics.CHARGED_USD.labels(self.name).inc(self.terms.usd_per_request)
        metrics.REQUESTS.labels(self.name, outcome).inc()
        metrics.BREAKER_OPEN.labels(self.name).set(self.breaker.is_open)


def _raise_for_status(response: Response) -> None:
    if response.status == 200:
        return
    text = response.content[:2_000].decode("utf-8", "replace")
    detail = f"HTTP {response.status}"
    if response.status in _NO_CREDIT or any(words in text.lower() for words in _NO_CREDIT_WORDS):
        raise UpstreamFailed(Outcome.OUT_OF_CREDIT, f"{detail}: out of credit")
    after = retry_after_seconds(response.headers)
    if response.status == 429:
        raise UpstreamFailed(Outcome.RATE_LIMITED, f"{detail}: too many requests", retry_after_seconds=after)
    if response.status >= 500 or response.status == 408:
        raise UpstreamFailed(Outcome.FAILED, detail, retry_after_seconds=after)
    raise UpstreamFailed(Outcome.REFUSED if response.status in (401, 403) else Outcome.BAD_REQUEST, detail)


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """What the other side asks for: seconds, a date, or Brave's list of seconds until each of its limits resets."""
    text = headers.get("retry-after") or headers.get("x-ratelimit-reset", "").partition(",")[0]
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - dt.datetime.now(dt.UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return seconds if 0.0 <= seconds <= 86_400.0 else None


def _short(error: Exception) -> str:
    return str(error)[:200]
