"""Celery tasks -> stored answers: `python -m celery -A services.evaluator.worker worker`.

A task names a chunk and nothing else. The worker claims it and keeps its lease while it has the questions answered,
stores the answers, and has them judged; whatever happens to the worker in between, the lease runs out and the chunk is
sent again. What is stored by then is not asked again.
"""

import asyncio
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any, TypeVar
from uuid import uuid4

import structlog
from celery import Celery
from celery.signals import worker_ready
from prometheus_client import start_http_server
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from searcher.clients.chat import ChatClient
from searcher.clients.judge import JudgeClient
from searcher.clients.retriever import RetrieverClient
from searcher.clients.reward import RewardClient
from searcher.clients.rollout import RolloutClient
from searcher.contracts.errors import InvalidInput, Unavailable
from searcher.contracts.report import OpenAIModel
from searcher.servicekit.logging import configure_logging
from searcher.servicekit.streams import connect
from services.evaluator.answering import Answerer, RolloutAnswers
from services.evaluator.chunks import Claim
from services.evaluator.dispatch import TASK, create_celery, dispatch
from services.evaluator.jobs import Jobs
from services.evaluator.judging import verdicts
from services.evaluator.metrics import ANSWERED, CHUNK_SECONDS, NOT_JUDGED, OUTAGES
from services.evaluator.openai_model import ModelAnswers
from services.evaluator.settings import EvaluatorSettings

log = structlog.get_logger()

T = TypeVar("T")


class LeaseLost(Exception):
    """Somebody else works on the chunk now, or nobody needs it any more."""


def create_worker(settings: EvaluatorSettings) -> Celery:
    configure_logging(settings.shared)
    celery = create_celery(settings)

    @celery.task(name=TASK)  # type: ignore[untyped-decorator]
    def evaluate_chunk(evaluation_id: str, number: int) -> None:
        asyncio.run(_evaluate(settings, celery, evaluation_id, number))

    @worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
    def serve_metrics(**_: Any) -> None:
        if settings.worker_metrics_port:
            start_http_server(settings.worker_metrics_port, settings.host)
        log.info("ready", concurrency=settings.worker_concurrency, rollout=settings.rollout_url)

    return celery


async def _evaluate(settings: EvaluatorSettings, celery: Celery, evaluation_id: str, number: int) -> None:
    async with AsyncExitStack() as stack:
        jobs = Jobs(await stack.enter_async_context(connect(settings.shared.redis_url)), settings)
        claim = await jobs.claim(evaluation_id, number, owner=uuid4().hex)
        if claim is not None:
            judge = await _judge(settings, stack) if claim.outline.judge else None
            await evaluate(jobs, claim, await _answerer(settings, claim, stack), judge)
        await dispatch(jobs, celery, evaluation_id)


async def evaluate(jobs: Jobs, claim: Claim, answerer: Answerer, judge: JudgeClient | None = None) -> None:
    """Answer a claimed chunk. Outages put it back; a question that cannot be asked fails the evaluation."""
    started = time.monotonic()
    bound = log.bind(evaluation=claim.evaluation_id, chunk=claim.number, system=claim.chunk.system)
    try:
        await _under_lease(jobs, claim, _answer(jobs, claim, answerer, judge))
    except LeaseLost:
        bound.warning("lease lost")
    except Unavailable as error:
        OUTAGES.inc()
        bound.warning("postponed", error=error.detail)
        await jobs.postpone(claim, reason=error.detail)
    except InvalidInput as error:
        bound.error("failed", error=error.detail)
        await jobs.fail(claim.evaluation_id, reason=error.detail)
    else:
        await jobs.finish(claim)
        CHUNK_SECONDS.observe(time.monotonic() - started)
        bound.info("answered", questions=len(claim.chunk.questions))


async def _answer(jobs: Jobs, claim: Claim, answerer: Answerer, judge: JudgeClient | None) -> None:
    """Store what is not answered yet, then the verdicts on what is. Raises Unavailable, having stored what there is."""
    known = await jobs.answers(claim)
    questions = [question for question in claim.chunk.questions if question.id not in known]
    if questions:
        answers = await answerer.answer(claim, questions)
        ANSWERED.inc(await jobs.store(claim, answers.rows, weights=answers.weights))
        if answers.outage:
            raise answers.outage
    if judge is not None:
        answered = (await jobs.answers(claim)).values()
        found = await verdicts(judge, answered)
        await jobs.judge(claim, found.by_id, problem=found.problem)
        NOT_JUDGED.inc(sum(row.judge is None for row in answered) - len(found.by_id))


async def _answerer(settings: EvaluatorSettings, claim: Claim, stack: AsyncExitStack) -> Answerer:
    if model := claim.system.model:
        return await _model(settings, model, stack)
    # Intake refuses an evaluation that brings its weights along where nobody takes them.
    url = (settings.versions_rollout_url if claim.outline.version else None) or settings.rollout_url
    rollout = RolloutClient(url, api_key=settings.shared.api_key, timeout_seconds=settings.rollout_timeout_seconds)
    return RolloutAnswers(await stack.enter_async_context(rollout), settings.weights_wait_seconds)


async def _model(settings: EvaluatorSettings, model: OpenAIModel, stack: AsyncExitStack) -> ModelAnswers:
    key = settings.shared.api_key
    chat = ChatClient(
        model.base_url.rstrip("/"),
        model.model,
        api_key=settings.model_api_key,
        timeout_seconds=settings.model_timeout_seconds,
    )
    return ModelAnswers(
        await stack.enter_async_context(chat),
        await stack.enter_async_context(RetrieverClient(settings.retriever_url, api_key=key)),
        await stack.enter_async_context(RewardClient(settings.reward_url, api_key=key)),
        settings.model_concurrency,
    )


async def _judge(settings: EvaluatorSettings, stack: AsyncExitStack) -> JudgeClient:
    assert settings.judge_url, "intake refuses an evaluation that nobody can judge"
    judge = JudgeClient(
        settings.judge_url.rstrip("/"),
        settings.judge_model,
        api_key=settings.judge_api_key,
        timeout_seconds=settings.judge_timeout_seconds,
    )
    return await stack.enter_async_context(judge)


async def _under_lease(jobs: Jobs, claim: Claim, work: Awaitable[T]) -> T:
    """Wait for the work and renew the lease meanwhile. Raises LeaseLost, and cancels the work, when that fails."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=jobs.settings.lease_seconds / 4)
            if not task.done() and not await _renew(jobs, claim):
                raise LeaseLost
        return task.result()
    finally:
        task.cancel()


async def _renew(jobs: Jobs, claim: Claim) -> bool:
    try:
        return await jobs.renew(claim)
    except (RedisConnectionError, RedisTimeoutError):
        return True  # a Redis that restarts takes nobody's work away; the next renewal will tell


app = create_worker(EvaluatorSettings())
