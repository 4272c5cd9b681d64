"""Celery tasks -> stored answers: `python -m celery -A services.evaluator.worker worker`.

A task names a chunk and nothing else. The worker claims it, keeps its lease while rollout works, and stores the
answers; whatever happens to the worker in between, the lease runs out and the chunk is sent again.
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

from searcher.clients.rollout import RolloutClient
from searcher.contracts.errors import InvalidInput, Unavailable
from searcher.servicekit.logging import configure_logging
from searcher.servicekit.streams import connect
from services.evaluator.answering import answer
from services.evaluator.dispatch import TASK, create_celery, dispatch
from services.evaluator.jobs import Claim, Jobs
from services.evaluator.metrics import ANSWERED, CHUNK_SECONDS, OUTAGES
from services.evaluator.settings import EvaluatorSettings

log = structlog.get_logger()

T = TypeVar("T")


class LeaseLost(Exception):
    """Somebody else works on the chunk now, or nobody needs it any more."""


def create_worker(settings: EvaluatorSettings) -> Celery:
    configure_logging(settings.shared)
    celery = create_celery(settings)

    @celery.task(name=TASK)  # type: ignore[untyped-decorator]
    def evaluate_chunk(evaluation_id: str, chunk: int) -> None:
        asyncio.run(_evaluate(settings, celery, evaluation_id, chunk))

    @worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
    def serve_metrics(**_: Any) -> None:
        if settings.worker_metrics_port:
            start_http_server(settings.worker_metrics_port, settings.host)
        log.info("ready", concurrency=settings.worker_concurrency, rollout=settings.rollout_url)

    return celery


async def _evaluate(settings: EvaluatorSettings, celery: Celery, evaluation_id: str, chunk: int) -> None:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(connect(settings.shared.redis_url))
        rollout = await stack.enter_async_context(
            RolloutClient(
                settings.rollout_url,
                api_key=settings.shared.api_key,
                timeout_seconds=settings.rollout_timeout_seconds,
            )
        )
        jobs = Jobs(redis, settings)
        claim = await jobs.claim(evaluation_id, chunk, owner=uuid4().hex)
        if claim is not None:
            await evaluate(jobs, rollout, claim)
        await dispatch(jobs, celery, evaluation_id)


async def evaluate(jobs: Jobs, rollout: RolloutClient, claim: Claim) -> None:
    """Answer a claimed chunk. Outages put it back; a request that rollout refuses fails the evaluation."""
    settings, started = jobs.settings, time.monotonic()
    bound = log.bind(evaluation=claim.evaluation_id, chunk=claim.chunk)
    work = answer(claim, rollout, weights_wait_seconds=settings.weights_wait_seconds)
    try:
        weights, rows = await _under_lease(jobs, claim, work)
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
        ANSWERED.inc(await jobs.store(claim, rows, weights=weights))
        CHUNK_SECONDS.observe(time.monotonic() - started)
        bound.info("answered", questions=len(rows), weights=weights)


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
