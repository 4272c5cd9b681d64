"""What an upstream's failures mean: who is asked again, when, and what is paid."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from contextlib import suppress
from email.utils import format_datetime
from typing import Any

import pytest

from searcher.contracts.errors import BudgetSpent
from services.retriever.web.exchange import Exchanger, Request
from services.retriever.web.limits import Breaker, Budget
from services.retriever.web.upstream import Outcome, Terms, Upstream, UpstreamFailed, retry_after_seconds
from tests.web_toys import HTML_ERROR, NEVER, Answer, ToyServer, ToyTime, toy_server

pytestmark = pytest.mark.anyio

GOOD = Answer({"answer": 42})
PRICE = 0.001


@pytest.fixture
async def toy() -> AsyncIterator[ToyServer]:
    async with toy_server() as toy:
        yield toy
    for exchanger in opened:
        await exchanger.close()
    opened.clear()


opened: list[Exchanger] = []


class Asking:
    """An upstream on the toy's path /ask, and all that is around it."""

    def __init__(self, toy: ToyServer, *answers: Answer, budget_usd: float = 1.0, per_second: float = 100.0) -> None:
        self.toy, self.time, self.budget, self.exchanger = toy, ToyTime(), Budget(budget_usd), Exchanger()
        opened.append(self.exchanger)
        self.request = Request("GET", toy.says("/ask", *answers), {"X-Key": "s3cret"})
        self.breaker = Breaker(failures=5, clock=self.time.clock)
        self.upstream = Upstream(
            "toy",
            self.exchanger,
            Terms(PRICE, per_second, attempt_seconds=0.3),
            budget=self.budget,
            breaker=self.breaker,
            clock=self.time.clock,
            sleep=self.time.sleep,
        )

    async def ask(self, *, within_seconds: float = 100.0) -> int:
        return await self.upstream.ask(self.request, self.read, until=self.time.now + within_seconds)

    async def fails(self, *, within_seconds: float = 100.0) -> UpstreamFailed:
        with pytest.raises(UpstreamFailed) as failed:
            await self.ask(within_seconds=within_seconds)
        return failed.value

    @property
    def num_asked(self) -> int:
        return len(self.toy.asked("/ask"))

    @staticmethod
    def read(answer: Any) -> int:
        if "answer" not in answer:
            raise ValueError("no field answer")
        found: int = answer["answer"]
        return found


async def test_an_answer_is_read_and_paid(toy: ToyServer) -> None:
    asking = Asking(toy, GOOD)

    assert await asking.ask() == 42
    assert (asking.num_asked, asking.budget.spent_usd) == (1, PRICE)


@pytest.mark.parametrize(
    ("bad", "outcome", "billed"),
    [
        (Answer(HTML_ERROR, status=500), Outcome.FAILED, 1),
        (Answer(HTML_ERROR, status=503), Outcome.FAILED, 1),
        (Answer(HTML_ERROR), Outcome.MALFORMED, 1),  # 200, as some proxies say it
        (Answer(b'{"answer": 4'), Outcome.MALFORMED, 1),
        (Answer(b"[" * 200_000), Outcome.MALFORMED, 1),
        (Answer({"other": 1}), Outcome.MALFORMED, 1),
        (Answer(b'{"answer": 42}', cut_after_bytes=6), Outcome.MALFORMED, 1),
        (Answer(hang_up=True), Outcome.MALFORMED, 1),
        (Answer(delay_seconds=NEVER), Outcome.TIMEOUT, 1),
        (Answer({}, status=429), Outcome.RATE_LIMITED, 0),
        (Answer({"error": "Quota exceeded: Queries per minute"}, status=429), Outcome.RATE_LIMITED, 0),  # Google
    ],
)
async def test_an_outage_is_tried_again_and_then_has_a_name(
    toy: ToyServer, bad: Answer, outcome: Outcome, billed: int
) -> None:
    recovering, lasting = Asking(toy, bad, GOOD), None
    assert await recovering.ask() == 42
    assert (recovering.num_asked, recovering.budget.spent_usd) == (2, PRICE * (1 + billed))

    toy.received.clear()
    lasting = Asking(toy, bad)
    assert (await lasting.fails()).outcome is outcome
    assert (lasting.num_asked, lasting.budget.spent_usd) == (3, pytest.approx(3 * PRICE * billed))


async def test_nobody_there_costs_nothing(toy: ToyServer) -> None:
    asking = Asking(toy, GOOD)
    asking.request = Request("GET", "http://127.0.0.1:1/")

    assert (await asking.fails()).outcome is Outcome.UNREACHABLE
    assert asking.budget.spent_usd == 0.0


@pytest.mark.parametrize(
    "bad",
    [
        Answer({}, status=402),
        Answer({"detail": "This request exceeds your plan's set usage limit."}, status=432),  # Tavily
        Answer({"message": "Not enough credits", "statusCode": 400}, status=400),  # Serper
        Answer({"error": "Your account has run out of searches."}, status=429),  # SerpAPI
        Answer({"error": "Quota exceeded: Queries per day"}, status=429),  # Google
        Answer({"error": "…", "tag": "NO_MORE_CREDITS"}, status=402),  # Exa
    ],
)
async def test_without_credit_nobody_is_asked_again(toy: ToyServer, bad: Answer) -> None:
    asking = Asking(toy, bad, GOOD)

    first = await asking.fails()
    asking.time.now += 60.0
    second = await asking.fails()

    assert (first.outcome, first.retry_after_seconds) == (Outcome.OUT_OF_CREDIT, 300.0)
    assert (second.outcome, second.retry_after_seconds) == (Outcome.RESTING, 240.0)
    assert (asking.num_asked, asking.budget.spent_usd) == (1, 0.0)

    asking.time.now += 240.0  # somebody may have paid
    assert await asking.ask() == 42


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_that_is_refused_is_not_shown_again(toy: ToyServer, status: int) -> None:
    asking = Asking(toy, Answer({"message": "Unauthorized."}, status=status), GOOD)

    refused = await asking.fails()

    assert (refused.outcome, refused.retry_after_seconds) == (Outcome.REFUSED, 300.0)
    assert (await asking.fails()).outcome is Outcome.RESTING
    assert asking.num_asked == 1


async def test_one_bad_request_does_not_close_the_door_for_others(toy: ToyServer) -> None:
    asking = Asking(toy, Answer({}, status=422), GOOD)

    assert (await asking.fails()).outcome is Outcome.BAD_REQUEST
    assert await asking.ask() == 42


async def test_a_redirect_is_not_followed_with_our_key(toy: ToyServer) -> None:
    asking = Asking(toy, Answer(status=302, headers={"Location": toy.url("/elsewhere")}))

    assert (await asking.fails()).outcome is Outcome.BAD_REQUEST
    assert toy.asked("/elsewhere") == []


async def test_one_waits_as_long_as_retry_after_says(toy: ToyServer) -> None:
    asking = Asking(toy, Answer({}, status=429, headers={"Retry-After": "7"}), GOOD)

    assert await asking.ask() == 42
    assert asking.time.slept == [7.0]


async def test_a_retry_after_beyond_the_deadline_is_not_waited_for_by_anybody(toy: ToyServer) -> None:
    asking = Asking(toy, Answer({}, status=429, headers={"Retry-After": "60"}), GOOD)

    first = await asking.fails(within_seconds=20.0)
    second = await asking.fails(within_seconds=20.0)

    assert (first.outcome, first.retry_after_seconds) == (Outcome.RATE_LIMITED, 60.0)
    assert (second.outcome, second.retry_after_seconds) == (Outcome.RESTING, 60.0)
    assert (asking.num_asked, asking.time.slept) == (1, [])

    assert await asking.ask(within_seconds=61.0) == 42
    assert asking.time.slept == [60.0]


async def test_after_failures_in_a_row_it_rests_and_then_one_tries(toy: ToyServer) -> None:
    asking = Asking(toy, *[Answer(status=500)] * 5, GOOD)
    assert (await asking.fails()).outcome is Outcome.FAILED  # three attempts
    assert (await asking.fails()).outcome is Outcome.RESTING  # two more, and the breaker is open

    assert (await asking.fails()).outcome is Outcome.RESTING
    assert asking.num_asked == 5

    asking.time.now += asking.breaker.seconds_to_trial
    assert await asking.ask() == 42
    assert not asking.breaker.is_open


async def test_the_failure_that_opens_the_breaker_says_how_long_it_rests(toy: ToyServer) -> None:
    asking = Asking(toy, Answer(status=500))
    asking.breaker.failures = 3

    assert (await asking.fails()).retry_after_seconds == 15.0


async def test_a_turn_that_comes_after_the_deadline_is_not_waited_for(toy: ToyServer) -> None:
    asking = Asking(toy, GOOD, per_second=0.1)
    assert await asking.ask() == 42

    assert (await asking.fails(within_seconds=5.0)).outcome is Outcome.RESTING
    assert await asking.ask(within_seconds=11.0) == 42
    assert asking.time.slept == [10.0]


async def test_beyond_the_budget_nothing_is_asked(toy: ToyServer) -> None:
    asking = Asking(toy, GOOD, budget_usd=2.5 * PRICE)
    await asking.ask()
    await asking.ask()

    with pytest.raises(BudgetSpent, match=r"0\.0020 of 0\.0025 USD are spent and a request to toy costs 0\.001"):
        await asking.ask()

    assert asking.num_asked == 2


async def test_who_leaves_in_the_middle_may_be_billed(toy: ToyServer) -> None:
    asking = Asking(toy, Answer(delay_seconds=NEVER))
    caller = asyncio.create_task(asking.ask())
    await toy.until_asked("/ask")

    caller.cancel()
    with suppress(asyncio.CancelledError):
        await caller

    assert asking.budget.spent_usd == PRICE
    assert asking.breaker.admits()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e9"}, None),
        ({"x-ratelimit-reset": "1, 1419704"}, 1.0),  # Brave: per second, per month
        ({"x-ratelimit-reset": "1763884800"}, None),  # a date in seconds, as others write it
        ({}, None),
    ],
)
def test_what_the_other_side_asks_for_is_understood(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers) == seconds


def test_a_date_is_understood_too() -> None:
    later = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=100)

    assert retry_after_seconds({"retry-after": format_datetime(later, usegmt=True)}) == pytest.approx(100, abs=30)
