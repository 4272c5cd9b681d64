"""Who is asked next, and what is said when nobody answers."""

import pytest

from searcher.contracts.errors import BudgetSpent, UpstreamUnavailable
from services.retriever.web.chain import Chain
from services.retriever.web.providers import Hit, WebQuery
from services.retriever.web.upstream import Outcome, UpstreamFailed
from tests.web_toys import ToyTime

pytestmark = pytest.mark.anyio

QUERY = WebQuery("capital of Italy")
HIT = Hit(title="Rome", url="https://example.org/rome", snippet="", score=1.0, provider="toy")
DOWN = UpstreamFailed(Outcome.FAILED, "HTTP 500", retry_after_seconds=3.0)
LIMITED = UpstreamFailed(Outcome.RATE_LIMITED, "HTTP 429", retry_after_seconds=9.0)
BROKE = BudgetSpent("RETRIEVER_WEB_BUDGET_USD: 1.0000 of 1.0000 USD are spent")


class ToyProvider:
    def __init__(self, name: str, outcome: tuple[Hit, ...] | Exception, *, takes_seconds: float = 0.0) -> None:
        self.name, self.outcome, self.takes_seconds = name, outcome, takes_seconds
        self.time: ToyTime | None = None
        self.given_seconds: list[float] = []

    async def search(self, query: WebQuery, *, until: float) -> tuple[Hit, ...]:
        assert self.time is not None
        self.given_seconds.append(until - self.time.now)
        self.time.now += self.takes_seconds
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


async def ask(*providers: ToyProvider, within_seconds: float = 30.0) -> tuple[Hit, ...]:
    time = ToyTime()
    for provider in providers:
        provider.time = time
    return await Chain(providers, clock=time.clock).hits(QUERY, until=time.now + within_seconds)


async def test_the_first_that_answers_is_the_last_that_is_asked() -> None:
    a, b, c = ToyProvider("a", DOWN), ToyProvider("b", (HIT,)), ToyProvider("c", (HIT,))

    assert await ask(a, b, c) == (HIT,)
    assert [len(provider.given_seconds) for provider in (a, b, c)] == [1, 1, 0]


async def test_nothing_found_is_an_answer_and_nobody_else_is_asked() -> None:
    other = ToyProvider("b", (HIT,))

    assert await ask(ToyProvider("a", ()), other) == ()
    assert other.given_seconds == []


async def test_the_first_cannot_use_up_the_time_of_the_others() -> None:
    a, b, c = (
        ToyProvider("a", DOWN, takes_seconds=10.0),
        ToyProvider("b", DOWN, takes_seconds=2.0),
        ToyProvider("c", ()),
    )

    await ask(a, b, c, within_seconds=30.0)

    assert [a.given_seconds, b.given_seconds, c.given_seconds] == [[10.0], [10.0], [18.0]]


async def test_when_nobody_answers_everybodys_reason_is_named() -> None:
    with pytest.raises(UpstreamUnavailable) as failed:
        await ask(ToyProvider("a", LIMITED), ToyProvider("b", DOWN))

    assert failed.value.detail == (
        "no search provider answered 'capital of Italy': a: rate_limited (HTTP 429); b: failed (HTTP 500)"
    )
    assert failed.value.retry_after_seconds == 3.0


async def test_who_cannot_be_paid_is_passed_over() -> None:
    assert await ask(ToyProvider("dear", BROKE), ToyProvider("free", (HIT,))) == (HIT,)


async def test_with_the_money_spent_it_is_the_money() -> None:
    with pytest.raises(BudgetSpent):
        await ask(ToyProvider("a", BROKE), ToyProvider("b", BROKE))


async def test_an_outage_of_the_free_one_is_an_outage() -> None:
    with pytest.raises(UpstreamUnavailable, match=r"dear: RETRIEVER_WEB_BUDGET_USD.*; free: failed"):
        await ask(ToyProvider("dear", BROKE), ToyProvider("free", DOWN))
