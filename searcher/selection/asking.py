"""Questions -> rollouts until each is answered right or was asked often enough.

All open questions take turns: everybody's second rollout comes after everybody's first. So the rollout service is busy
until the very end, when only the difficult ones are left, and they are left all together.
"""

import asyncio
import hashlib
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from searcher.contracts.errors import Conflict, SearcherError, Unavailable
from searcher.contracts.question import Question, RolloutRequest
from searcher.contracts.trajectory import RolloutResponse, Trajectory
from searcher.contracts.weights import EngineState, WeightsStatus
from searcher.selection.difficulty import Difficulty, Labelled
from searcher.selection.journal import Attempt, Journal

T = TypeVar("T")

REQUESTS_IN_FLIGHT = 8
"""Half of what the rollout service takes at once: others may ask beside a selection."""
QUESTIONS_PER_REQUEST = 32
"""With the above, as many trajectories as the rollout service runs at once."""
MAX_ANSWER_CHARACTERS = 1_000
"""In the journal; the whole answer was judged."""
MAX_RETRY_SECONDS = 10.0
SPEED_ROLLOUTS = 512
"""Speed and share of right answers are told from this many of the newest rollouts."""


class Rollouts(Protocol):
    async def rollouts(self, request: RolloutRequest) -> RolloutResponse:
        """Raises Conflict if the engines hold other weights, Unavailable in an outage."""

    async def weights(self) -> WeightsStatus: ...


@dataclass
class Tally:
    """How far a selection is."""

    num_questions: int
    rollouts: int
    """At most, per question."""
    labels: Counter[Difficulty] = field(default_factory=Counter)
    """Of finished questions."""
    num_asked: int = 0
    """Rollouts, those of earlier sessions too."""
    open_attempts: Counter[int] = field(default_factory=Counter)
    """Unfinished questions by how often they were asked."""
    outage: str | None = None
    """What is being waited for."""
    newest: deque[tuple[float, int, int]] = field(default_factory=deque)
    """(when, rollouts, right ones) of this session's newest requests."""

    @property
    def num_finished(self) -> int:
        return self.labels.total()

    def saw(self, attempts: Sequence[Attempt]) -> None:
        self.newest.append((time.monotonic(), len(attempts), sum(attempt.correct for attempt in attempts)))
        while len(self.newest) > 2 and sum(count for _, count, _ in self.newest) > SPEED_ROLLOUTS:
            self.newest.popleft()

    def seconds_left(self) -> float | None:
        """A guess: right answers stay as frequent as lately, and rollouts as fast. None before there is a speed."""
        if len(self.newest) < 2:
            return None
        (since, _, _), (until, _, _) = self.newest[0], self.newest[-1]
        asked = sum(count for _, count, _ in list(self.newest)[1:])
        share_right = sum(right for _, _, right in self.newest) / sum(count for _, count, _ in self.newest)
        rollouts_left = sum(
            count * expected_rollouts(share_right, self.rollouts - attempts)
            for attempts, count in self.open_attempts.items()
        )
        return rollouts_left * (until - since) / max(asked, 1)


@dataclass(frozen=True, eq=False)
class _Turn:
    question: Question
    attempt: int


async def ask_all(
    client: Rollouts,
    questions: Sequence[Question],
    journal: Journal,
    *,
    outage_seconds: float = 600.0,
    on_progress: Callable[[Tally], None] = lambda tally: None,
) -> None:
    """Return when every question is finished; a question that the journal has finished is not asked.

    Raises Conflict if the engines' weights change, Unavailable for an outage longer than `outage_seconds`. Whatever was
    answered until then is in the journal.
    """
    await _Session(client, questions, journal, outage_seconds, on_progress).run()


async def held_weights(client: Rollouts, *, outage_seconds: float = 600.0) -> str:
    """The version that the engines hold. Raises Conflict if they hold several, Unavailable if none gets ready."""

    async def ask() -> str:
        status = await client.weights()
        versions = {engine.version for engine in status.engines if engine.state is EngineState.READY}
        if not versions:
            raise Unavailable("no engine is ready")
        if len(versions) > 1:
            raise Conflict(f"the engines hold different weights: {', '.join(sorted(versions))}; wait for the update")
        return versions.pop()

    return await waiting_out(ask, outage_seconds=outage_seconds)


def labelled(questions: Sequence[Question], journal: Journal) -> list[Labelled]:
    """Those that are finished, in order."""
    assert journal.asking is not None
    finished = [(question, journal.attempts.get(question.id, [])) for question in questions]
    return [
        Labelled(question, len(attempts), first_correct=len(attempts) if attempts[-1].correct else None)
        for question, attempts in finished
        if is_finished(attempts, journal.asking.rollouts)
    ]


def is_finished(attempts: Sequence[Attempt], rollouts: int) -> bool:
    return bool(attempts) and (attempts[-1].correct or len(attempts) >= rollouts)


def expected_rollouts(share_right: float, at_most: int) -> float:
    """Of a question that is answered right with this probability each time, until it is or was asked `at_most` times.

    sum over i < at_most of (1 - p)^i = (1 - (1 - p)^at_most) / p
    """
    return (1 - (1 - share_right) ** at_most) / share_right if share_right > 0 else float(at_most)


async def waiting_out(
    ask: Callable[[], Awaitable[T]],
    *,
    outage_seconds: float,
    on_outage: Callable[[str | None], None] = lambda problem: None,
) -> T:
    """Ask again until there is an answer. Raises Unavailable after an outage of this length; other errors at once."""
    deadline: float | None = None
    while True:
        try:
            answer = await ask()
        except Unavailable as error:
            deadline = deadline or time.monotonic() + outage_seconds
            if time.monotonic() >= deadline:
                raise
            on_outage(str(error))
            await asyncio.sleep(min(error.retry_after_seconds, MAX_RETRY_SECONDS))
        else:
            if deadline is not None:
                on_outage(None)
            return answer


def seed_of(seed: int, attempt: int) -> int:
    """The plan's seed for everybody's n-th rollout: the same in a session that goes on, another for every attempt."""
    return int.from_bytes(hashlib.sha256(f"select/{seed}/{attempt}".encode()).digest()[:4], "big")


class _Session:
    def __init__(
        self,
        client: Rollouts,
        questions: Sequence[Question],
        journal: Journal,
        outage_seconds: float,
        on_progress: Callable[[Tally], None],
    ) -> None:
        assert journal.asking is not None, "a journal is started before questions are asked"
        self.client, self.journal, self.asking = client, journal, journal.asking
        self.outage_seconds, self.on_progress = outage_seconds, on_progress
        self.tally = Tally(len(questions), self.asking.rollouts)
        turns: list[_Turn] = []
        for question in questions:
            attempts = journal.attempts.get(question.id, [])
            self.tally.num_asked += len(attempts)
            if is_finished(attempts, self.asking.rollouts):
                (label,) = labelled([question], journal)
                self.tally.labels[label.difficulty] += 1
            else:
                self.tally.open_attempts[len(attempts)] += 1
                turns.append(_Turn(question, len(attempts) + 1))
        self.waiting = turns
        self.num_in_flight = 0
        self.returned = asyncio.Condition()

    async def run(self) -> None:
        self.on_progress(self.tally)
        askers = [asyncio.create_task(self._ask_until_done()) for _ in range(REQUESTS_IN_FLIGHT)]
        try:
            await asyncio.gather(*askers)
        finally:
            for asker in askers:
                asker.cancel()
            await asyncio.gather(*askers, return_exceptions=True)

    async def _ask_until_done(self) -> None:
        while turns := await self._next_turns():
            attempts = await self._ask(turns)
            self.journal.add(attempts)
            self.tally.saw(attempts)
            async with self.returned:
                for turn, attempt in zip(turns, attempts, strict=True):
                    self._put_back_or_close(turn, attempt)
                self.num_in_flight -= len(turns)
                self.returned.notify_all()
            self.on_progress(self.tally)

    async def _next_turns(self) -> list[_Turn]:
        """An equal part of what waits, all at the same attempt; empty when all questions are finished."""
        async with self.returned:
            await self.returned.wait_for(lambda: bool(self.waiting) or not self.num_in_flight)
            if not self.waiting:
                return []
            fair_part = math.ceil((len(self.waiting) + self.num_in_flight) / REQUESTS_IN_FLIGHT)
            attempt = min(turn.attempt for turn in self.waiting)
            turns = [turn for turn in self.waiting if turn.attempt == attempt][: min(QUESTIONS_PER_REQUEST, fair_part)]
            taken = set(turns)
            self.waiting = [turn for turn in self.waiting if turn not in taken]
            self.num_in_flight += len(turns)
            return turns

    async def _ask(self, turns: Sequence[_Turn]) -> list[Attempt]:
        asking, attempt = self.asking, turns[0].attempt
        request = RolloutRequest(
            questions=tuple(turn.question for turn in turns),
            plan=asking.plan.model_copy(update={"seed": seed_of(asking.seed, attempt)}),
            rules=asking.rules,
            weights=asking.weights,
        )
        response = await waiting_out(
            lambda: self.client.rollouts(request), outage_seconds=self.outage_seconds, on_outage=self._outage
        )
        if response.weights != asking.weights:
            raise Conflict(f"weights: they changed from {asking.weights!r} to {response.weights!r} meanwhile")
        return [self._judged(turn, only) for turn, (only,) in zip(turns, response.groups, strict=True)]

    def _judged(self, turn: _Turn, trajectory: Trajectory) -> Attempt:
        score = trajectory.score
        if score is None or trajectory.question.id != turn.question.id:
            raise SearcherError(f"rollout answered question {turn.question.id!r} with an unscored or another one")
        figure: float = getattr(score, self.asking.correct.value)
        answer = score.answer if score.answer is None else score.answer[:MAX_ANSWER_CHARACTERS]
        return Attempt(
            id=turn.question.id,
            attempt=turn.attempt,
            correct=figure >= self.asking.at_least,
            figure=figure,
            answer=answer,
        )

    def _put_back_or_close(self, turn: _Turn, attempt: Attempt) -> None:
        tally = self.tally
        tally.num_asked += 1
        tally.open_attempts[turn.attempt - 1] -= 1
        attempts = self.journal.attempts[turn.question.id]
        if is_finished(attempts, self.asking.rollouts):
            (label,) = labelled([turn.question], self.journal)
            tally.labels[label.difficulty] += 1
        else:
            tally.open_attempts[turn.attempt] += 1
            self.waiting.append(_Turn(turn.question, turn.attempt + 1))

    def _outage(self, problem: str | None) -> None:
        self.tally.outage = problem
        self.on_progress(self.tally)
