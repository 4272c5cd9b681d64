"""A judge that is away costs verdicts and nothing else."""

from collections.abc import Callable

import pytest

from searcher.contracts.errors import UpstreamUnavailable
from searcher.contracts.report import EvaluatedQuestion
from searcher.qa.answer import Golds
from services.evaluator.judging import GIVE_UP_AFTER, verdicts

pytestmark = pytest.mark.anyio

Row = Callable[..., EvaluatedQuestion]


class ToyJudge:
    """Takes "yes" for right; says nothing to some answers, or to all of them."""

    def __init__(self, *, silent_on: str = "", away: bool = False) -> None:
        self.silent_on, self.away = silent_on, away
        self.asked: list[str] = []

    async def verdict(self, question: str, golds: Golds, prediction: str) -> bool:
        self.asked.append(prediction)
        if self.away or prediction == self.silent_on:
            raise UpstreamUnavailable("judge did not answer")
        return prediction == "yes"


async def test_every_answer_is_judged_once_and_none_is_wrong_without_asking(row: Row) -> None:
    judge = ToyJudge()
    rows = [row("a", answer="yes"), row("b", answer="no"), row("c", answer=None), row("d", answer="yes", judge=True)]

    found = await verdicts(judge, rows)  # type: ignore[arg-type]

    assert found.by_id == {"a": True, "b": False, "c": False}
    assert (sorted(judge.asked), found.problem) == (["no", "yes"], "")


async def test_one_verdict_that_is_missing_takes_no_other_with_it(row: Row) -> None:
    rows = [row(str(number), answer="hm" if number % 2 else "yes") for number in range(12)]

    found = await verdicts(ToyJudge(silent_on="hm"), rows, concurrency=1)  # type: ignore[arg-type]

    assert set(found.by_id) == {"0", "2", "4", "6", "8", "10"}
    assert found.problem == "judge did not answer"


async def test_a_judge_that_is_away_is_not_waited_for_by_every_answer(row: Row) -> None:
    judge = ToyJudge(away=True)

    found = await verdicts(judge, [row(str(number)) for number in range(32)], concurrency=1)  # type: ignore[arg-type]

    assert (found.by_id, found.problem) == ({}, "judge did not answer")
    assert len(judge.asked) == GIVE_UP_AFTER
