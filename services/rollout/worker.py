"""Questions of training runs -> scored groups, on Redis Streams.

    claim -> wait for the weights -> n episodes -> score -> deliver (which gives the lease back)

A question in hand is a lease, renewed while its work goes on. Whatever dies or stays away, the question is asked again
until its group is delivered whole: an outage costs time, never a trajectory of a group.
"""

import asyncio
import os
import random
import secrets
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from searcher.clients.reward import RewardClient
from searcher.contracts.errors import InvalidInput, SearcherError
from searcher.contracts.experience import DropReason, ScoredGroup
from searcher.contracts.question import QuestionTask
from searcher.contracts.trajectory import Trajectory
from searcher.servicekit.streams import Claim, QuestionStream, active_runs
from services.rollout import metrics
from services.rollout.tasks import all_of, cancel, was_cancelled
from services.rollout.trajectories import RetrieverUnavailable, Sampler

log = structlog.get_logger()

IDLE_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 10.0

T = TypeVar("T")


class RunEnded(Exception):
    """The run is not active any more while its question waits for something: whoever resumes the run asks it again."""


class Worker:
    def __init__(
        self,
        redis: Redis,
        sampler: Sampler,
        reward: RewardClient,
        *,
        max_concurrent_questions: int = 64,
        lease_seconds: float = 30.0,
    ) -> None:
        self.redis, self.sampler, self.reward = redis, sampler, reward
        self.max_concurrent_questions, self.lease_seconds = max_concurrent_questions, lease_seconds
        self.consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._streams: dict[str, QuestionStream] = {}
        self._in_hand: dict[bytes, tuple[Claim, asyncio.Task[None]]] = {}
        self._stopping = False

    async def run(self) -> None:
        """Work until cancelled. Call `stop` first to lose nothing."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._forever(self._claim))
            tasks.create_task(self._forever(self._keep_leases))

    async def stop(self, *, within_seconds: float) -> None:
        """Claim no more, wait for the questions in hand, give back the leases of those that take longer."""
        self._stopping = True
        tasks = [task for _, task in self._in_hand.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=within_seconds)
        held = self._held()
        await cancel(tasks)
        with suppress(RedisError, OSError):  # then they expire by themselves
            for run_id, entry_ids in held.items():
                await (await self._stream(run_id)).give_back(self.consumer, entry_ids)

    async def _forever(self, step: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        while not was_cancelled():
            try:
                await step()
                failures = 0
            except Exception as error:
                failures += 1
                known = isinstance(error, RedisError | OSError)
                log.warning("worker waits for redis", error=str(error), exc_info=not known)
                self._streams.clear()  # whatever Redis forgot in a restart is opened again
                await asyncio.sleep(_backoff_seconds(failures))

    async def _claim(self) -> None:
        free = self._num_free()
        runs = await active_runs(self.redis) if free and not self._stopping else []
        if not runs:
            await asyncio.sleep(IDLE_SECONDS)
        for run_id in runs:
            if count := self._num_free():
                stream = await self._stream(run_id)
                block_ms = max(1, int(1000 * IDLE_SECONDS / len(runs)))
                for claim in await stream.claim(self.consumer, count=count, block_ms=block_ms):
                    self._take(stream, claim)

    async def _keep_leases(self) -> None:
        for run_id, entry_ids in self._held().items():
            await (await self._stream(run_id)).renew(self.consumer, entry_ids)
        for run_id in await active_runs(self.redis):
            if not self._num_free() or self._stopping:
                break
            stream = await self._stream(run_id)
            lease_ms = int(1000 * self.lease_seconds)
            for claim in await stream.take_over(self.consumer, lease_ms=lease_ms, count=self._num_free()):
                log.info("took over", group=claim.task.group_id)
                self._take(stream, claim)
        await asyncio.sleep(self.lease_seconds / 3)

    def _take(self, stream: QuestionStream, claim: Claim) -> None:
        if claim.entry_id in self._in_hand:  # our own, not renewed in time
            return
        task = asyncio.create_task(self._answer(stream, claim))
        self._in_hand[claim.entry_id] = (claim, task)
        metrics.QUESTIONS_IN_FLIGHT.set(len(self._in_hand))

    async def _answer(self, stream: QuestionStream, claim: Claim) -> None:
        """After an unexpected error the lease expires, and the question is asked again then."""
        task = claim.task
        try:
            if await stream.is_delivered(task.group_id):
                await stream.discard(claim)
                return
            group = await self._group(task)
            await self._deliver(stream, claim, group)
        except RunEnded:
            log.info("left behind", group=task.group_id, run=task.run_id)
        except Exception:
            metrics.DROPPED.labels("internal").inc()
            log.exception("question failed", group=task.group_id)
        finally:
            del self._in_hand[claim.entry_id]
            metrics.QUESTIONS_IN_FLIGHT.set(len(self._in_hand))

    async def _group(self, task: QuestionTask) -> ScoredGroup:
        """All n trajectories, scored; or none, and the reason why asking again would not help."""
        group = ScoredGroup(group_id=task.group_id, run_id=task.run_id, stage=task.stage, trajectories=())
        try:
            await self._until_done(task, lambda: self.sampler.engines.hold(task.min_weights), reason="weights")
            trajectories = await all_of(self._trajectory(task, sample) for sample in range(task.num_samples))
            if not all(trajectory.segments for trajectory in trajectories):
                limit = f"{len(trajectories[0].prompt_ids)} prompt tokens leave no room for a turn"
                return group.model_copy(update={"dropped": DropReason.PROMPT_TOO_LONG, "detail": limit})
            scores = await self._until_done(
                task, lambda: self.reward.score(trajectories, rules=task.rules), reason="reward"
            )
        except InvalidInput as error:
            return group.model_copy(update={"dropped": DropReason.REFUSED, "detail": str(error)})
        scored = (t.model_copy(update={"score": score}) for t, score in zip(trajectories, scores, strict=True))
        return group.model_copy(update={"trajectories": tuple(scored)})

    async def _trajectory(self, task: QuestionTask, sample: int) -> Trajectory:
        """Started again from the prompt after an outage; the group's other trajectories go on meanwhile."""
        name = f"{task.group_id}.{sample}"
        sampled = await self._until_done(
            task,
            lambda: self.sampler.trajectory(task.question, task.plan, sample=sample, name=name),
            reason="engine",
        )
        return sampled.trajectory

    async def _until_done(self, task: QuestionTask, work: Callable[[], Awaitable[T]], *, reason: str) -> T:
        """Wait out outages. Raises InvalidInput (asking again would not help) or RunEnded."""
        failures = 0
        while not was_cancelled():
            try:
                return await work()
            except InvalidInput:
                raise
            except SearcherError as error:
                failures += 1
                cause = "retriever" if isinstance(error, RetrieverUnavailable) else reason
                metrics.DROPPED.labels(cause).inc()
                log.warning("dropped, asking again", group=task.group_id, reason=cause, error=str(error))
            await asyncio.sleep(_backoff_seconds(failures))
            with suppress(RedisError, OSError):
                if task.run_id not in await active_runs(self.redis):
                    raise RunEnded
        raise asyncio.CancelledError

    async def _deliver(self, stream: QuestionStream, claim: Claim, group: ScoredGroup) -> None:
        failures = 0
        while not was_cancelled():
            try:
                if await stream.deliver(claim, group):
                    metrics.GROUPS.labels(group.dropped.value if group.dropped else "none").inc()
                return
            except (RedisError, OSError) as error:
                failures += 1
                log.warning("not delivered yet", group=group.group_id, error=str(error))
                await asyncio.sleep(_backoff_seconds(failures))

    async def _stream(self, run_id: str) -> QuestionStream:
        if run_id not in self._streams:
            stream = QuestionStream(self.redis, run_id)
            await stream.open()
            self._streams[run_id] = stream
        return self._streams[run_id]

    def _held(self) -> dict[str, list[bytes]]:
        held: defaultdict[str, list[bytes]] = defaultdict(list)
        for entry_id, (claim, _) in self._in_hand.items():
            held[claim.task.run_id].append(entry_id)
        return held

    def _num_free(self) -> int:
        return max(0, self.max_concurrent_questions - len(self._in_hand))


def _backoff_seconds(failures: int) -> float:
    return random.uniform(0.5, 1.0) * min(0.2 * 2.0 ** min(failures, 10), MAX_BACKOFF_SECONDS)
