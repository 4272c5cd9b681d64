"""Questions of training runs -> scored groups: whole, once, whatever stays away meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from redis.asyncio import Redis
from rollout_toys import ANSWERS, PLAN, QUESTION, ToyEngine, ToyRetriever, ToyTokenizer, reconciling, until, weights

from searcher.contracts.errors import InvalidInput, NotFound, UpstreamUnavailable
from searcher.contracts.experience import DropReason, ScoredGroup
from searcher.contracts.question import QuestionTask, RolloutPlan
from searcher.contracts.score import Score
from searcher.contracts.trajectory import Trajectory
from searcher.contracts.weights import WeightVersion
from searcher.servicekit.streams import ExperienceStream, QuestionStream, activate, announce_weights, deactivate
from services.rollout import metrics
from services.rollout.engines import Engines
from services.rollout.policy import Codec
from services.rollout.tasks import running
from services.rollout.trajectories import Sampler
from services.rollout.worker import Worker

pytestmark = pytest.mark.anyio

RUN = "demo"


@dataclass
class ToyReward:
    """A trajectory's score is its number of searches; raises what it is told to, once."""

    failures: list[Exception] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)

    async def score(self, trajectories: Sequence[Trajectory], *, rules: str) -> tuple[Score, ...]:
        self.calls.append(len(trajectories))
        if self.failures:
            raise self.failures.pop(0)
        return tuple(
            Score(total=float(len(t.searches)), parts={}, answer=None, em=0, cover_em=0, f1=0, format_ok=True)
            for t in trajectories
        )


@dataclass
class World:
    redis: Redis
    engine: ToyEngine = field(default_factory=ToyEngine)
    retriever: ToyRetriever = field(default_factory=ToyRetriever)
    reward: ToyReward = field(default_factory=ToyReward)

    @asynccontextmanager
    async def worker(self, *, lease_seconds: float = 30.0, max_concurrent_questions: int = 8) -> AsyncIterator[Worker]:
        engines = Engines([self.engine.client()], self.redis, reconcile_seconds=0.01)
        sampler = Sampler(engines, Codec(ToyTokenizer()), self.retriever)  # type: ignore[arg-type]
        worker = Worker(
            self.redis,
            sampler,
            self.reward,  # type: ignore[arg-type]
            max_concurrent_questions=max_concurrent_questions,
            lease_seconds=lease_seconds,
        )
        async with reconciling(engines), running(worker.run()):
            yield worker
            await worker.stop(within_seconds=0)

    async def ask(
        self, group_id: str = "g0", *, plan: RolloutPlan = PLAN, min_weights: WeightVersion | None = None
    ) -> QuestionStream:
        stream = QuestionStream(self.redis, RUN)
        await stream.open()
        await activate(self.redis, RUN)
        task = QuestionTask(
            group_id=group_id,
            run_id=RUN,
            stage="main",
            question=QUESTION,
            num_samples=3,
            plan=plan,
            rules="searcher",
            min_weights=min_weights,
        )
        assert await stream.send(task)
        return stream

    async def groups(self, count: int = 1) -> list[ScoredGroup]:
        """The first `count` groups that are delivered, once there are as many."""
        entries: list[tuple[str, ScoredGroup]] = []
        async with asyncio.timeout(15):
            while len(entries) < count:
                after = entries[-1][0] if entries else "0-0"
                entries += await ExperienceStream(self.redis, RUN).read(after, count=100, block_ms=50)
        return [group for _, group in entries]


@pytest.fixture
def world(redis: Redis) -> World:
    return World(redis)


def dropped(reason: str) -> float:
    return float(metrics.DROPPED.labels(reason)._value.get())


async def test_a_question_becomes_a_scored_group_and_its_lease_is_given_back(world: World) -> None:
    stream = await world.ask()

    async with world.worker():
        (group,) = await world.groups()

    assert (group.group_id, group.run_id, group.stage, group.dropped) == ("g0", RUN, "main", None)
    assert [t.id for t in group.trajectories] == ["g0.0", "g0.1", "g0.2"]
    assert [t.score and t.score.total for t in group.trajectories] == [1.0, 1.0, 1.0]
    assert all(t.text.endswith(ANSWERS) for t in group.trajectories)
    assert await stream.backlog() == 0


async def test_sampling_waits_for_the_weights_and_every_token_knows_its_step(world: World) -> None:
    await announce_weights(world.redis, weights(4))
    await world.ask(min_weights=weights(5))

    async with world.worker():
        await until(lambda: world.engine.version == weights(4).name)
        assert world.engine.turns == []
        await announce_weights(world.redis, weights(5))
        (group,) = await world.groups()

    for trajectory in group.trajectories:
        steps = {sampled: set() for sampled in (True, False)}
        for step, sampled in zip(trajectory.weight_steps, trajectory.policy_mask, strict=True):
            steps[sampled].add(step)
        assert steps == {True: {5}, False: {-1}}


async def test_an_outage_of_the_retriever_costs_time_and_no_trajectory(world: World) -> None:
    before = dropped("retriever")
    world.retriever.failures = [UpstreamUnavailable("retriever did not answer")] * 2
    await world.ask()

    async with world.worker():
        (group,) = await world.groups()

    assert [len(t.searches) for t in group.trajectories] == [1, 1, 1]
    assert dropped("retriever") - before == 2


async def test_an_outage_of_the_reward_service_keeps_the_trajectories(world: World) -> None:
    before = dropped("reward")
    world.reward.failures = [UpstreamUnavailable("reward did not answer")]
    await world.ask()

    async with world.worker():
        (group,) = await world.groups()

    assert len(group.trajectories) == 3
    assert world.reward.calls == [3, 3]
    assert len(world.engine.turns) == 6
    assert dropped("reward") - before == 1


@pytest.mark.parametrize("error", [InvalidInput("rules: unknown"), NotFound("corpus 'x' is not loaded")])
async def test_a_task_that_a_service_refuses_gives_an_empty_group_with_the_reason(
    world: World, error: Exception
) -> None:
    world.reward.failures = [error]
    await world.ask()

    async with world.worker():
        (group,) = await world.groups()

    assert group.trajectories == ()
    assert group.dropped is DropReason.REFUSED
    assert group.detail == str(error)


async def test_a_plan_that_does_not_fit_the_model_is_refused(world: World) -> None:
    await world.ask(plan=PLAN.model_copy(update={"template": "r1-searcher-chat"}))

    async with world.worker():
        (group,) = await world.groups()

    assert group.dropped is DropReason.REFUSED
    assert "chat template" in group.detail


async def test_a_prompt_that_leaves_no_room_is_dropped_by_name(world: World) -> None:
    await world.ask(plan=PLAN.model_copy(update={"max_context_tokens": 32}))

    async with world.worker():
        (group,) = await world.groups()

    assert group.dropped is DropReason.PROMPT_TOO_LONG


async def test_questions_of_a_dead_worker_are_taken_over(world: World) -> None:
    stream = await world.ask()
    assert len(await stream.claim("dead", count=1, block_ms=1)) == 1

    async with world.worker(lease_seconds=0.05):
        (group,) = await world.groups()

    assert len(group.trajectories) == 3


async def test_questions_of_a_working_worker_are_not_taken_over(world: World) -> None:
    world.engine.gate.clear()
    stream = await world.ask()
    async with world.worker(lease_seconds=3.0):  # long enough that a busy machine does not keep it from renewing
        await world.engine.arrived.wait()

        stolen = []
        for _ in range(7):
            await asyncio.sleep(0.5)
            stolen += await stream.take_over("thief", lease_ms=2_500, count=1)

    assert stolen == []


async def test_a_group_that_was_delivered_by_another_is_not_sampled_again(world: World) -> None:
    stream = await world.ask()
    await world.redis.sadd(stream.done, "g0")

    async with world.worker():
        await world.ask("g1")
        await world.groups()

    assert await stream.backlog() == 0
    assert len(world.engine.turns) == 6  # three samples of g1, two turns each


async def test_a_worker_that_stops_gives_its_leases_back_at_once(world: World) -> None:
    world.engine.gate.clear()
    stream = await world.ask()
    async with world.worker(lease_seconds=3_600):
        await world.engine.arrived.wait()

    (claim,) = await stream.take_over("successor", lease_ms=3_600_000, count=1)
    assert claim.task.group_id == "g0"


async def test_a_worker_that_stops_finishes_what_it_can(world: World) -> None:
    world.engine.gate.clear()
    await world.ask()
    async with world.worker() as worker:
        await world.engine.arrived.wait()
        stopping = asyncio.create_task(worker.stop(within_seconds=10))
        world.engine.gate.set()
        await stopping

        (group,) = await world.groups()

    assert len(group.trajectories) == 3


async def test_a_redis_that_forgot_everything_is_worked_for_again(world: World) -> None:
    await world.ask("g0")
    async with world.worker():
        await world.groups()

        await world.redis.flushall()
        await world.ask("g1")
        (group,) = await world.groups()

    assert group.group_id == "g1"


async def test_questions_of_a_run_that_ended_are_left_behind(world: World) -> None:
    world.retriever.failures = [UpstreamUnavailable("retriever did not answer")] * 1_000
    stream = await world.ask()
    async with world.worker() as worker:
        await world.engine.arrived.wait()

        await deactivate(world.redis, RUN)
        await until(lambda: not worker._in_hand)

    assert await stream.backlog() == 1


async def test_no_more_questions_are_held_than_allowed(world: World) -> None:
    world.engine.gate.clear()
    stream = await world.ask("g0")
    for number in range(1, 5):
        await world.ask(f"g{number}")
    async with world.worker(max_concurrent_questions=2) as worker:
        await until(lambda: len(worker._in_hand) == 2)

        assert len(await stream.claim("other", count=10, block_ms=1)) == 3
