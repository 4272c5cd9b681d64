"""What keeps us from asking too fast, too long in vain, or beyond our means. No HTTP here."""

import asyncio
import fcntl
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from searcher.contracts.errors import BudgetSpent, InvalidInput
from services.retriever.web import metrics

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]

_MICRO = 1_000_000


class TokenBucket:
    """At most `per_second` requests a second on average, and a second's worth at once after a quiet time."""

    def __init__(self, per_second: float, *, clock: Clock = time.monotonic, sleep: Sleep = asyncio.sleep) -> None:
        self.per_second, self._clock, self._sleep = per_second, clock, sleep
        self._next_at = clock() - self._saved_seconds
        self._head = asyncio.Lock()
        """Held by the one whose turn is next; the others wait for it in the order in which they came."""
        self._num_waiting = 0

    @property
    def _saved_seconds(self) -> float:
        """A quiet time saves up this much, and always at least one request."""
        return max(1.0, 1.0 / self.per_second) - 1.0 / self.per_second

    @property
    def wait_seconds(self) -> float:
        """How long a request that comes now would wait."""
        now = self._clock()
        next_at = max(self._next_at, now - self._saved_seconds)
        return max(0.0, next_at + self._num_waiting / self.per_second - now)

    async def take(self) -> None:
        """Wait for one's turn. First come, first served; whoever leaves while waiting takes no turn."""
        self._num_waiting += 1
        try:
            async with self._head:
                if (seconds := self._next_at - self._clock()) > 0:
                    await self._sleep(seconds)
                self._next_at = max(self._next_at, self._clock() - self._saved_seconds) + 1.0 / self.per_second
        finally:
            self._num_waiting -= 1

    def hold(self, seconds: float) -> None:
        """Nobody's turn before that: the other side asked for it."""
        self._next_at = max(self._next_at, self._clock() + seconds)


class Breaker:
    """Open after `failures` in a row: nobody asks for `cool_seconds`, then one at a time tries whether it is back."""

    def __init__(self, *, failures: int = 5, cool_seconds: float = 15.0, clock: Clock = time.monotonic) -> None:
        self.failures, self.cool_seconds, self._clock = failures, cool_seconds, clock
        self._in_a_row = 0
        self._open_until: float | None = None

    @property
    def is_open(self) -> bool:
        return self._open_until is not None

    @property
    def seconds_to_trial(self) -> float:
        return 0.0 if self._open_until is None else max(0.0, self._open_until - self._clock())

    def admits(self) -> bool:
        """May one ask now? Whoever is let through an open breaker is its trial, and holds back the others as long."""
        if self._open_until is None:
            return True
        if self._clock() < self._open_until:
            return False
        self._open_until = self._clock() + self.cool_seconds
        return True

    def succeeded(self) -> None:
        self._in_a_row, self._open_until = 0, None

    def failed(self) -> None:
        self._in_a_row += 1
        if self._in_a_row >= self.failures:
            self.trip(self.cool_seconds)

    def trip(self, seconds: float) -> None:
        """Open at once: asking again is known not to help for a while."""
        self._open_until = self._clock() + seconds


class Budget:
    """The money of one run. With a `ledger` file, all processes that share it spend from one budget, restarts too."""

    def __init__(self, limit_usd: float, *, ledger: Path | None = None) -> None:
        self._limit, self._ledger, self._spent = _micro(limit_usd), ledger, 0
        if ledger is not None:
            with self._opened():
                pass
        self._show()

    @property
    def spent_usd(self) -> float:
        return self._spent / _MICRO

    def reserve(self, usd: float, *, what: str) -> None:
        """Before asking. Raises BudgetSpent, and then nothing is spent."""
        price = _micro(usd)
        with self._opened():
            affordable = not price or self._spent + price <= self._limit
            if affordable:
                self._spent += price
        self._show()
        if not affordable:
            raise BudgetSpent(
                f"RETRIEVER_WEB_BUDGET_USD: {self._spent / _MICRO:.4f} of {self._limit / _MICRO:.4f} USD are spent "
                f"and {what} costs {usd:g}; raise the budget to go on"
            )

    def refund(self, usd: float) -> None:
        """What was reserved but is not billed."""
        with self._opened():
            self._spent -= _micro(usd)
        self._show()

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """The ledger's figure, ours alone until the block ends. An error in the block leaves it as it was."""
        if self._ledger is None:
            yield
            return
        file = os.open(self._ledger, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._spent = self._read(os.pread(file, 64, 0))
            yield
            os.pwrite(file, b"%020d micro-USD\n" % self._spent, 0)
        finally:
            os.close(file)

    def _read(self, text: bytes) -> int:
        try:
            return int(text[:20]) if text else 0
        except ValueError:
            raise InvalidInput(f"{self._ledger}: does not say what is spent; write 20 digits of micro-USD") from None

    def _show(self) -> None:
        metrics.SPENT_USD.set(self._spent / _MICRO)
        metrics.BUDGET_LEFT_USD.set((self._limit - self._spent) / _MICRO)


def _micro(usd: float) -> int:
    """Whole numbers, so that a million small prices add up."""
    return round(usd * _MICRO)
