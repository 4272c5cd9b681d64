"""The delivery guarantees of the streams, on a real Redis."""

import pytest
from redis.asyncio import Redis

from searcher.contracts.experience import ScoredGroup
from searcher.contracts.question import Question, QuestionTask, RolloutPlan
from searcher.servicekit.streams import ExperienceStream, QuestionStream, activate, active_runs, forget

pytestmark = pytest.mark.anyio


def task(group_id: str) -> QuestionTask:
    question = Question(id="q", question="Who?", answers=("Nobody",))
    return QuestionTask(
        group_id=group_id,
        run_id="run",
        stage="one",
        question=question,
        num_samples=2,
        plan=RolloutPlan(),
        rules="searcher",
    )


def group(group_id: str) -> ScoredGroup:
    return ScoredGroup(group_id=group_id, run_id="run", stage="one", trajectories=())


@pytest.fixture
async def questions(redis: Redis) -> QuestionStream:
    stream = QuestionStream(redis, "run")
    await stream.open()
    await stream.open()
    return stream


async def test_a_question_sent_twice_is_asked_once(questions: QuestionStream) -> None:
    assert await questions.send(task("g1"))
    assert not await questions.send(task("g1"))

    claims = await questions.claim("worker", count=10, block_ms=10)

    assert [claim.task.group_id for claim in claims] == ["g1"]


async def test_a_claimed_question_is_nobody_elses(questions: QuestionStream) -> None:
    await questions.send(task("g1"))
    await questions.claim("first", count=1, block_ms=10)

    assert await questions.claim("second", count=1, block_ms=10) == []
    assert await questions.take_over("second", lease_ms=60_000, count=1) == []


async def test_the_question_of_a_dead_worker_is_taken_over(questions: QuestionStream) -> None:
    await questions.send(task("g1"))
    await questions.claim("dead", count=1, block_ms=10)

    claims = await questions.take_over("alive", lease_ms=0, count=1)

    assert [claim.task.group_id for claim in claims] == ["g1"]


async def test_a_renewed_lease_is_not_taken_over(questions: QuestionStream, redis: Redis) -> None:
    await questions.send(task("g1"))
    (claim,) = await questions.claim("slow", count=1, block_ms=10)
    await redis.xclaim(questions.key, "rollout", "slow", 0, [claim.entry_id], idle=120_000, justid=True)

    await questions.renew("slow", [claim.entry_id])

    assert await questions.take_over("other", lease_ms=60_000, count=1) == []


async def test_two_workers_with_the_same_question_deliver_once(questions: QuestionStream, redis: Redis) -> None:
    await questions.send(task("g1"))
    (slow,) = await questions.claim("slow", count=1, block_ms=10)
    (fast,) = await questions.take_over("fast", lease_ms=0, count=1)

    assert await questions.deliver(fast, group("g1"))
    assert not await questions.deliver(slow, group("g1"))

    assert len(await ExperienceStream(redis, "run").read("0-0", count=10, block_ms=10)) == 1
    assert await questions.backlog() == 0
    assert await questions.is_delivered("g1")


async def test_the_trainer_reads_from_any_position_again(questions: QuestionStream, redis: Redis) -> None:
    for name in ("g1", "g2", "g3"):
        await questions.send(task(name))
    for claim in await questions.claim("worker", count=3, block_ms=10):
        await questions.deliver(claim, group(claim.task.group_id))
    experience = ExperienceStream(redis, "run")

    (first, _), *_ = await experience.read("0-0", count=1, block_ms=10)
    rest = await experience.read(first, count=10, block_ms=10)
    again = await experience.read(first, count=10, block_ms=10)

    assert [g.group_id for _, g in rest] == ["g2", "g3"]
    assert again == rest


async def test_what_is_before_the_checkpoint_is_trimmed(questions: QuestionStream, redis: Redis) -> None:
    for name in ("g1", "g2"):
        await questions.send(task(name))
    for claim in await questions.claim("worker", count=2, block_ms=10):
        await questions.deliver(claim, group(claim.task.group_id))
    experience = ExperienceStream(redis, "run")
    (_, _), (second, _) = await experience.read("0-0", count=2, block_ms=10)

    await experience.trim(second)

    assert [g.group_id for _, g in await experience.read("0-0", count=9, block_ms=10)] == ["g2"]


async def test_a_forgotten_run_leaves_nothing_behind(questions: QuestionStream, redis: Redis) -> None:
    await activate(redis, "run")
    await questions.send(task("g1"))
    assert await active_runs(redis) == ["run"]

    await forget(redis, "run")

    assert await redis.keys("*") == []
