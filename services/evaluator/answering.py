"""A chunk of questions -> evaluated questions, by way of rollout. What is stored, and when, is left to worker.py."""

import asyncio
import time
from collections.abc import Sequence

from searcher.clients.rollout import RolloutClient
from searcher.contracts.errors import Conflict, SearcherError
from searcher.contracts.question import Question, RolloutRequest
from searcher.contracts.report import EvaluatedQuestion
from searcher.contracts.trajectory import RolloutResponse, Trajectory
from searcher.qa.answer import cover_exact_match_strict
from services.evaluator.jobs import Claim


async def answer(
    claim: Claim, rollout: RolloutClient, *, weights_wait_seconds: float
) -> tuple[str, list[EvaluatedQuestion]]:
    """The weights that answered, and one row per question in the order asked. Raises what rollout raises."""
    questions = claim.request.questions
    request = RolloutRequest(
        questions=questions, plan=claim.request.plan, rules=claim.request.rules, weights=claim.request.weights
    )
    # Weights that gave an answer once do not come back: only the first answers may wait for them.
    patience_seconds = 0.0 if claim.num_answered else weights_wait_seconds
    response = await _when_loaded(rollout, request, patience_seconds=patience_seconds)
    return response.weights, _rows(questions, response)


async def _when_loaded(rollout: RolloutClient, request: RolloutRequest, *, patience_seconds: float) -> RolloutResponse:
    give_up = time.monotonic() + patience_seconds
    while True:
        try:
            return await rollout.rollouts(request)
        except Conflict:
            if time.monotonic() >= give_up:
                raise
            await asyncio.sleep(0.25)


def _rows(questions: Sequence[Question], response: RolloutResponse) -> list[EvaluatedQuestion]:
    asked, got = [question.id for question in questions], [group[0].question.id for group in response.groups]
    if asked != got:
        raise SearcherError(f"rollout answered other questions than asked: {got} instead of {asked}")
    return [evaluated(group[0]) for group in response.groups]


def evaluated(trajectory: Trajectory) -> EvaluatedQuestion:
    """A scored trajectory -> a row of the report."""
    question, score = trajectory.question, trajectory.score
    if score is None:
        raise SearcherError(f"rollout did not score the trajectory of question {question.id!r}")
    return EvaluatedQuestion(
        id=question.id,
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
        num_searches=len(trajectory.searches),
        queries=tuple(search.query for search in trajectory.searches),
        evidence=_found_evidence(trajectory),
        num_tokens=trajectory.num_policy_tokens,
        stop_reason=trajectory.stop_reason.value,
        response=trajectory.text,
    )


def _found_evidence(trajectory: Trajectory) -> bool | None:
    """Whether every gold passage was retrieved; None where the data names none."""
    gold = set(trajectory.question.gold_ids)
    if not gold:
        return None
    return gold <= {passage.id for search in trajectory.searches for passage in search.passages}
