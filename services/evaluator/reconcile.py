"""Open evaluations -> lost chunks sent again, finished reports on disk. The API process does this as long as it lives.

Everything is read from Redis anew in each round, so it does not matter which process was here before.
"""

import asyncio
from collections import Counter
from contextlib import suppress

import structlog
from redis.exceptions import RedisError

from searcher.contracts.errors import NotFound
from searcher.contracts.report import EvaluationState
from services.evaluator.evaluations import Evaluations
from services.evaluator.metrics import FINISHED, IDLE_SECONDS, OPEN

log = structlog.get_logger()


async def reconcile_until(stop: asyncio.Event, evaluations: Evaluations) -> None:
    while not stop.is_set():
        try:
            await reconcile(evaluations)
        except RedisError as error:
            log.warning("not reconciled", error=str(error))
        except Exception as error:  # nobody else re-sends lost chunks: this loop goes on
            log.error("not reconciled", exc_info=error)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), timeout=evaluations.jobs.settings.reconcile_seconds)


async def reconcile(evaluations: Evaluations) -> None:
    """Look once at every open evaluation: send what is due, close what has come to its end."""
    jobs = evaluations.jobs
    states: Counter[EvaluationState] = Counter()
    idle_seconds = 0.0
    for evaluation_id in await jobs.open_ids():
        await evaluations.send_due(evaluation_id)
        try:
            state = (await jobs.status(evaluation_id)).state
        except NotFound:  # Redis lost its memory, but not all of it
            await jobs.close(evaluation_id)
            continue
        if state in (EvaluationState.DONE, EvaluationState.FAILED):
            await close(evaluations, evaluation_id, state)
        else:
            states[state] += 1
            idle_seconds = max(idle_seconds, await jobs.idle_seconds(evaluation_id))
    for state in (EvaluationState.QUEUED, EvaluationState.RUNNING):
        OPEN.labels(state).set(states[state])
    IDLE_SECONDS.set(idle_seconds)


async def close(evaluations: Evaluations, evaluation_id: str, state: EvaluationState) -> None:
    """Bring the report to disk, then let Redis forget. What fails here (a full disk) is tried again next round."""
    if state is EvaluationState.DONE:
        try:
            await evaluations.keep_page(await evaluations.keep_report(evaluation_id))
        except RedisError:
            raise
        except Exception as error:  # whatever is wrong with one report, the other evaluations go on
            log.error("report not written", evaluation=evaluation_id, exc_info=error)
            return
    await evaluations.jobs.close(evaluation_id)
    FINISHED.labels(state).inc()
    log.info("closed", evaluation=evaluation_id, state=state.value)
