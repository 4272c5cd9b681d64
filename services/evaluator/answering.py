"""A chunk's questions -> evaluated questions, by way of rollout. What is stored, and when, is left to worker.py.

Models behind an API answer in openai_model.py.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from searcher.clients.rollout import RolloutClient
from searcher.contracts.errors import Conflict, SearcherError, Unavailable
from searcher.contracts.question import Question, RolloutRequest, SearchMode
from searcher.contracts.report import EvaluatedQuestion
from searcher.contracts.score import Score
from searcher.contracts.trajectory import RolloutResponse, Search, StopReason, Trajectory
from searcher.qa.answer import cover_exact_match_strict
from searcher.qa.tags import document_block
from services.evaluator.chunks import Claim
from services.evaluator.evidence import evidence, supported


@dataclass(frozen=True)
class Answers:
    """What came of a chunk's questions."""

    rows: list[EvaluatedQuestion]
    weights: str = ""
    """The rollout service's version that answered; "" where it was not asked."""
    outage: Unavailable | None = None
    """Why rows are missing, if some are. Those that are there can be kept."""


class Answerer(Protocol):
    async def answer(self, claim: Claim, questions: Sequence[Question]) -> Answers:
        """Rows in any order. Raises Unavailable for an outage, InvalidInput if the question cannot be asked."""


@dataclass(frozen=True)
class RolloutAnswers:
    """The rollout service's weights, searching as much as the system may."""

    rollout: RolloutClient
    weights_wait_seconds: float

    async def answer(self, claim: Claim, questions: Sequence[Question]) -> Answers:
        outline = claim.outline
        request = RolloutRequest(
            questions=tuple(questions),
            plan=outline.plan.model_copy(update={"search": claim.system.search}),
            rules=outline.rules,
            weights=outline.demanded_weights,
        )
        # Weights that gave an answer once do not come back: only the first answers may wait for them.
        patience_seconds = 0.0 if claim.num_answered else self.weights_wait_seconds
        response = await self._when_loaded(request, patience_seconds=patience_seconds)
        return Answers(_rows(claim, questions, response), weights=response.weights)

    async def _when_loaded(self, request: RolloutRequest, *, patience_seconds: float) -> RolloutResponse:
        give_up = time.monotonic() + patience_seconds
        while True:
            try:
                return await self.rollout.rollouts(request)
            except Conflict:
                if time.monotonic() >= give_up:
                    raise
                await asyncio.sleep(0.25)


def _rows(claim: Claim, questions: Sequence[Question], response: RolloutResponse) -> list[EvaluatedQuestion]:
    asked, got = [question.id for question in questions], [group[0].question.id for group in response.groups]
    if asked != got:
        raise SearcherError(f"rollout answered other questions than asked: {got} instead of {asked}")
    return [_row(claim, question, group[0]) for question, group in zip(questions, response.groups, strict=True)]


def _row(claim: Claim, question: Question, trajectory: Trajectory) -> EvaluatedQuestion:
    if trajectory.score is None:
        raise SearcherError(f"rollout did not score the trajectory of question {question.id!r}")
    # The documents of a single search are part of the prompt; readers of a report want to see them all the same.
    read = document_block(trajectory.searches[0].passages) if claim.system.search is SearchMode.ONCE else ""
    return evaluated(
        claim,
        question,
        trajectory.score,
        searches=trajectory.searches,
        num_tokens=trajectory.num_policy_tokens,
        stop_reason=trajectory.stop_reason,
        response=read + trajectory.text,
    )


def evaluated(
    claim: Claim,
    question: Question,
    score: Score,
    *,
    searches: Sequence[Search],
    num_tokens: int,
    stop_reason: StopReason,
    response: str,
) -> EvaluatedQuestion:
    """A row of the report, without the judge's verdict."""
    found = evidence(question.gold_ids, searches)
    return EvaluatedQuestion(
        id=question.id,
        benchmark=claim.chunk.benchmark,
        system=claim.chunk.system,
        question=question.question,
        answers=question.answers,
        hops=question.hops,
        answer=score.answer,
        em=score.em,
        cover_em=score.cover_em,
        cover_em_strict=0.0 if score.answer is None else cover_exact_match_strict(score.answer, question.answers),
        f1=score.f1,
        reward=score.total,
        format_ok=score.format_ok,
        num_searches=len(searches),
        queries=tuple(search.query for search in searches),
        evidence=found.all_found,
        evidence_recall=found.recall,
        evidence_search=found.search,
        supported=supported(score.answer, searches),
        num_tokens=num_tokens,
        stop_reason=stop_reason.value,
        response=response,
    )
