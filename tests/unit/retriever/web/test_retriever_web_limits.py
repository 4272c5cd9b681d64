"""Rates, breakers and money, by a clock that only moves when somebody sleeps."""

import asyncio
import multiprocessing
from pathlib import Path

import pytest

from searcher.contracts.errors import BudgetSpent, InvalidInput
from services.retriever.web import metrics
from services.retriever.web.limits import Breaker, Budget, TokenBucket
from tests.web_toys import ToyTime

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------------------------------------------------------
# Rates


async def turns(bucket: TokenBucket, time: ToyTime, count: int) -> list[float]:
    """When each of `count` requests, one after the other, may go; from now."""
    start = time.now
    return [round((await bucket.take(), time.now)[1] - start, 3) for _ in range(count)]


async def test_after_a_quiet_time_a_seconds_worth_goes_at_once() -> None:
    time = ToyTime()
    bucket = TokenBucket(4.0, clock=time.clock, sleep=time.sleep)

    assert await turns(bucket, time, 7) == [0.0, 0.0, 0.0, 0.0, 0.25, 0.5, 0.75]


async def test_a_slow_rate_saves_up_no_more_than_one() -> None:
    time = ToyTime()
    bucket = TokenBucket(0.5, clock=time.clock, sleep=time.sleep)
    time.now += 100

    assert await turns(bucket, time, 3) == [0.0, 2.0, 4.0]


async def test_those_who_wait_together_are_spread() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(round(seconds, 3))

    bucket = TokenBucket(2.0, clock=lambda: 0.0, sleep=sleep)
    await asyncio.gather(*(bucket.take() for _ in range(5)))

    assert waits == [0.5, 1.0, 1.5]


async def test_who_asks_to_be_left_alone_is() -> None:
    time = ToyTime()
    bucket = TokenBucket(10.0, clock=time.clock, sleep=time.sleep)

    bucket.hold(30.0)

    assert bucket.wait_seconds == 30.0
    assert await turns(bucket, time, 2) == [30.0, 30.1]


async def test_who_leaves_while_waiting_takes_no_turn() -> None:
    bucket = TokenBucket(20.0)
    waiting = [asyncio.create_task(bucket.take()) for _ in range(200)]
    await asyncio.sleep(0.01)
    full = bucket.wait_seconds
    for task in waiting[30:]:
        task.cancel()
    await asyncio.sleep(0.01)

    assert full > 8.0
    assert bucket.wait_seconds < 1.0
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert bucket.wait_seconds < 0.5


# ---------------------------------------------------------------------------------------------------------------------
# Breakers


def test_a_breaker_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(failures=3, clock=ToyTime().clock)

    for _ in range(2):
        breaker.failed()
    breaker.succeeded()
    for _ in range(2):
        breaker.failed()
    assert breaker.admits()

    breaker.failed()
    assert breaker.is_open
    assert not breaker.admits()


def test_an_open_breaker_lets_one_try_after_it_has_cooled() -> None:
    time = ToyTime()
    breaker = Breaker(failures=1, cool_seconds=10.0, clock=time.clock)
    breaker.failed()

    time.now += 9.9
    assert not breaker.admits()
    time.now += 0.1
    assert [breaker.admits() for _ in range(3)] == [True, False, False]

    breaker.succeeded()
    assert breaker.admits()


def test_a_trial_that_never_reports_does_not_keep_it_open_for_ever() -> None:
    time = ToyTime()
    breaker = Breaker(failures=1, cool_seconds=10.0, clock=time.clock)
    breaker.failed()
    time.now += 10.0
    assert breaker.admits()

    time.now += 10.0

    assert breaker.admits()


def test_a_failed_trial_opens_it_again() -> None:
    time = ToyTime()
    breaker = Breaker(failures=2, cool_seconds=10.0, clock=time.clock)
    breaker.failed()
    breaker.failed()
    time.now += 10.0
    assert breaker.admits()

    breaker.failed()

    assert breaker.seconds_to_trial == 10.0


# ---------------------------------------------------------------------------------------------------------------------
# Money


def test_small_prices_add_up_exactly() -> None:
    budget = Budget(1.0)
    for _ in range(1_000):
        budget.reserve(0.001, what="a request")

    assert budget.spent_usd == 1.0
    with pytest.raises(BudgetSpent, match=r"RETRIEVER_WEB_BUDGET_USD: 1\.0000 of 1\.0000 USD are spent and a request"):
        budget.reserve(0.001, what="a request")
    assert budget.spent_usd == 1.0


def test_what_is_free_needs_no_budget() -> None:
    budget = Budget(0.0)

    budget.reserve(0.0, what="a request")

    assert budget.spent_usd == 0.0


def test_a_refund_can_be_spent_again() -> None:
    budget = Budget(0.01)
    budget.reserve(0.01, what="a request")
    budget.refund(0.01)

    budget.reserve(0.01, what="another")

    assert budget.spent_usd == 0.01


def test_a_restart_does_not_fill_the_purse(tmp_path: Path) -> None:
    Budget(1.0, ledger=tmp_path / "spent").reserve(0.75, what="a request")

    restarted = Budget(1.0, ledger=tmp_path / "spent")

    assert restarted.spent_usd == 0.75
    with pytest.raises(BudgetSpent):
        restarted.reserve(0.5, what="a request")
    assert (tmp_path / "spent").read_text() == "00000000000000750000 micro-USD\n"


def _spend(ledger: Path, times: int) -> None:
    budget = Budget(1_000.0, ledger=ledger)
    for _ in range(times):
        budget.reserve(0.001, what="a request")


def test_processes_spend_from_one_purse(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    spenders = [spawn.Process(target=_spend, args=(tmp_path / "spent", 500)) for _ in range(3)]
    for spender in spenders:
        spender.start()
    for spender in spenders:
        spender.join()

    assert [spender.exitcode for spender in spenders] == [0, 0, 0]
    assert Budget(2.0, ledger=tmp_path / "spent").spent_usd == 1.5


def test_a_refusal_shows_what_another_process_spent(tmp_path: Path) -> None:
    here, there = (Budget(1.0, ledger=tmp_path / "spent") for _ in range(2))
    there.reserve(1.0, what="a request")
    metrics.BUDGET_LEFT_USD.set(0.5)

    with pytest.raises(BudgetSpent):
        here.reserve(0.25, what="a request")

    assert metrics.BUDGET_LEFT_USD._value.get() == 0.0


def test_a_ledger_that_nobody_can_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spent").write_text("about three dollars")

    with pytest.raises(InvalidInput, match="spent: does not say what is spent"):
        Budget(1.0, ledger=tmp_path / "spent")
