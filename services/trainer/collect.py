"""Planned questions -> their groups, batch by batch, over the two Redis streams.

A batch is trained from exactly its own groups: what comes early waits, what comes twice is dropped and counted. So the
order of training does not depend on the order of delivery, and a resumed run repeats its steps.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from searcher.contracts.experience import ScoredGroup
from searcher.contracts.weights import WeightVersion
from searcher.servicekit.streams import ExperienceStream, QuestionStream
from services.trainer.curriculum import Curriculum, Slot, group_batch

log = structlog.get_logger()
Answer = TypeVar("Answer")

START = "0-0"
REMIND_SECONDS = 30.0
"""Silence after which weights are announced and open questions sent again: Redis may have lost them. Harmless where it
has not."""


class StopRequested(Exception):
    """Somebody asked the run to stop while it waited."""


class Collector:
    """Asks what the curriculum plans; hands out each batch once all of its groups are there."""

    def __init__(
        self,
        curriculum: Curriculum,
        questions: QuestionStream,
        experience: ExperienceStream,
        stop: asyncio.Event,
        *,
        on_silence: Callable[[], Awaitable[None]],
    ) -> None:
        self.curriculum, self.questions, self.experience, self.stop = curriculum, questions, experience, stop
        self.on_silence = on_silence
        self.cursor = START
        """Read up to here."""
        self.waiting: dict[str, tuple[str, ScoredGroup]] = {}
        """Groups read and not yet trained, with their positions."""
        self.dropped: Counter[str] = Counter()
        """Groups that were not trained, by reason, since they were last asked for."""
        self.sent: set[str] = set()

    @property
    def position(self) -> str:
        """Where a run resumed now must start to read: just before the earliest entry it has not trained."""
        earliest = min((position for position, _ in self.waiting.values()), key=_order, default=None)
        return self.cursor if earliest is None else _just_before(earliest)

    async def ask(self, weights: WeightVersion, *, up_to_batch: int) -> None:
        """Send every planned question that was not sent: it shall be answered by these weights or newer ones."""
        self.curriculum.plan(up_to_batch)
        for slots in list(self.curriculum.progress.outstanding.values()):
            for slot in slots:
                task = self.curriculum.task(slot, weights)
                if task.group_id not in self.sent:
                    await outlast(partial(self.questions.send, task), self.stop)
                    self.sent.add(task.group_id)

    async def collect(self, batch: int, weights: WeightVersion) -> list[ScoredGroup]:
        """The groups of this batch, one per slot, in slot order. Raises StopRequested."""
        while True:
            await self._wait_for([self.curriculum.group_id(slot) for slot in self.curriculum.slots(batch)], weights)
            # Decided only once all have answered, so that replacements do not depend on who answered first.
            refused = [slot for slot in self.curriculum.slots(batch) if self._answer(slot).dropped is not None]
            if not refused:
                break
            for slot in refused:
                group = self._take(self.curriculum.group_id(slot))
                assert group.dropped is not None
                self.dropped[group.dropped.value] += 1
                log.warning("question_dropped", group=group.group_id, reason=group.dropped.value, detail=group.detail)
                self.curriculum.replace(slot, group)
            await self.ask(weights, up_to_batch=batch)
        return [self._take(self.curriculum.group_id(slot)) for slot in self.curriculum.slots(batch)]

    def take_dropped(self) -> dict[str, int]:
        counts, self.dropped = dict(self.dropped), Counter()
        return counts

    async def _wait_for(self, group_ids: list[str], weights: WeightVersion) -> None:
        heard = time.monotonic()
        while not self.waiting.keys() >= set(group_ids):
            if self.stop.is_set():
                raise StopRequested
            entries = await outlast(lambda: self.experience.read(self.cursor, count=64, block_ms=500), self.stop)
            for position, group in entries:
                self.cursor, heard = position, time.monotonic()
                self._keep(position, group)
            if time.monotonic() - heard > REMIND_SECONDS:
                heard = time.monotonic()
                self.sent.clear()
                await self.on_silence()
                await self.ask(weights, up_to_batch=-1)

    def _keep(self, position: str, group: ScoredGroup) -> None:
        samples, wanted = len(group.trajectories), self.curriculum.recipe.samples_per_question
        assert group.dropped is not None or samples == wanted, (
            f"{group.group_id}: {samples} samples, asked for {wanted}"
        )
        batch = group_batch(group.group_id)
        if group.group_id in self.waiting:
            self.dropped["duplicate"] += 1
        elif batch < self.curriculum.progress.next_batch and not self._is_open(batch, group.group_id):
            self.dropped["already_trained"] += 1
        else:
            self.waiting[group.group_id] = (position, group)

    def _is_open(self, batch: int, group_id: str) -> bool:
        """Whether the group can still be asked for: its batch is not trained, its slot not past its attempt."""
        if not self.curriculum.has(batch):
            return False
        attempts = {slot.number: slot.attempt for slot in self.curriculum.slots(batch)}
        *_, number, attempt = group_id.split("-")
        return int(attempt.removeprefix("a")) >= attempts.get(int(number.removeprefix("q")), 0)

    def _answer(self, slot: Slot) -> ScoredGroup:
        return self.waiting[self.curriculum.group_id(slot)][1]

    def _take(self, group_id: str) -> ScoredGroup:
        return self.waiting.pop(group_id)[1]


async def outlast(operation: Callable[[], Awaitable[Answer]], stop: asyncio.Event) -> Answer:
    """Repeat a Redis operation until it succeeds: an outage is waited out. Raises StopRequested if it may end here."""
    delay_seconds = 0.2
    while True:
        try:
            return await operation()
        except (RedisConnectionError, RedisTimeoutError) as error:
            log.warning("redis_unreachable", error=str(error), retry_in_seconds=delay_seconds)
            if stop.is_set():
                raise StopRequested from error
            await asyncio.sleep(delay_seconds)
            delay_seconds = min(5.0, 2 * delay_seconds)


def _order(position: str) -> tuple[int, int]:
    milliseconds, _, sequence = position.partition("-")
    return int(milliseconds), int(sequence)


def _just_before(position: str) -> str:
    milliseconds, sequence = _order(position)
    if sequence > 0:
        return f"{milliseconds}-{sequence - 1}"
    return f"{milliseconds - 1}-{2**64 - 1}"
