"""Due chunks -> Celery tasks. Celery on Redis may lose a task or run it twice; jobs.py makes both harmless."""

import asyncio

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from services.evaluator.jobs import Jobs
from services.evaluator.metrics import RESENT
from services.evaluator.settings import EvaluatorSettings

log = structlog.get_logger()

TASK, QUEUE = "evaluator.evaluate_chunk", "evaluator"


def create_celery(settings: EvaluatorSettings) -> Celery:
    """One configuration for who sends and who works."""
    celery = Celery("evaluator", broker=settings.shared.redis_url)
    celery.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_default_queue=QUEUE,
        task_ignore_result=True,
        task_publish_retry=False,
        # A worker holds no more tasks than it runs: the others are left to other workers.
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        worker_pool="threads",  # a task waits for rollout nearly all of its time
        worker_concurrency=settings.worker_concurrency,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            # Kombu's own redelivery loses tasks all the same, repeats long ones, and ends the worker when Redis
            # restarts (it restores unacknowledged tasks over a closed connection). The leases of jobs.py need none.
            "ack_emulation": False,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
        },
    )
    return celery


async def dispatch(jobs: Jobs, celery: Celery, evaluation_id: str) -> None:
    """Send what is due. A broker that does not answer is no error: the chunks become due again."""
    due = await jobs.take_due(evaluation_id)
    if due.again:
        RESENT.inc(len(due.again))
        log.warning("resent", evaluation=evaluation_id, chunks=due.again)
    try:
        for chunk in (*due.again, *due.first):
            await asyncio.to_thread(celery.send_task, TASK, args=(evaluation_id, chunk), retry=False)
    except OperationalError as error:
        log.warning("not sent", evaluation=evaluation_id, error=str(error))
