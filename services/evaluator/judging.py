"""A chunk's answers -> the judge's verdicts. That it gives none is never an error: the report says what is missing."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field

from searcher.clients.judge import JudgeClient
from searcher.contracts.errors import UpstreamUnavailable
from searcher.contracts.report import EvaluatedQuestion

GIVE_UP_AFTER = 3
"""Failures in a row, without a single verdict, after which a chunk's other answers are not sent any more."""


@dataclass
class Verdicts:
    by_id: dict[str, bool] = field(default_factory=dict)
    problem: str = ""
    """Why answers have none; "" if all have."""
    num_failed: int = 0

    @property
    def is_hopeless(self) -> bool:
        return not self.by_id and self.num_failed >= GIVE_UP_AFTER


async def verdicts(judge: JudgeClient, rows: Collection[EvaluatedQuestion], *, concurrency: int = 8) -> Verdicts:
    """On answers that have no verdict yet. Who did not answer is wrong, and nobody needs to be asked about it."""
    places, found, unasked = asyncio.Semaphore(concurrency), Verdicts(), dict[str, bool]()

    async def one(row: EvaluatedQuestion, answer: str) -> None:
        async with places:
            if found.is_hopeless:
                return
            try:
                found.by_id[row.id] = await judge.verdict(row.question, row.answers, answer)
            except UpstreamUnavailable as error:
                found.num_failed += 1
                found.problem = error.detail

    async with asyncio.TaskGroup() as group:
        for row in rows:
            if row.answer is None:
                unasked[row.id] = False
            elif row.judge is None:
                group.create_task(one(row, row.answer))
    found.by_id |= unasked
    return found
