import asyncio

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from trainer_toys import fixed_group, question

from searcher.contracts.experience import DropReason, ScoredGroup, pack_group
from searcher.contracts.question import QuestionTask
from searcher.contracts.recipe import Recipe
from searcher.contracts.weights import WeightVersion
from searcher.servicekit.streams import ExperienceStream, QuestionStream
from services.trainer import collect
from services.trainer.collect import START, Collector, StopRequested, outlast
from services.trainer.curriculum import Curriculum

pytestmark = pytest.mark.anyio

WEIGHTS = WeightVersion(run_id="toy", step=0, location="file:///w", sha256="a" * 64, num_bytes=1)
RECIPE = Recipe.model_validate(
    {
        "name": "toy",
        "model": {"path": "-"},
        "questions_per_step": 2,
        "samples_per_question": 2,
        "stages": [{"name": "only", "questions": "-", "rules": "searcher", "max_steps": 9}],
    }
)


class Scene:
    """A collector, and a rollout that the test plays itself."""

    def __init__(self, redis: Redis) -> None:
        self.redis, self.stop, self.was_silent = redis, asyncio.Event(), asyncio.Event()
        self.questions = QuestionStream(redis, "toy")
        self.collector = self.new_collector()

    def new_collector(self) -> Collector:
        curriculum = Curriculum(RECIPE, {"only": [question(n) for n in range(6)]}, "toy")
        experience = ExperienceStream(self.redis, "toy")
        return Collector(curriculum, self.questions, experience, self.stop, on_silence=self.on_silence)

    async def on_silence(self) -> None:
        await self.questions.open()
        self.was_silent.set()

    async def ask(self, up_to_batch: int) -> list[QuestionTask]:
        """Ask, and claim what was asked."""
        await self.questions.open()
        await self.collector.ask(WEIGHTS, up_to_batch=up_to_batch)
        return [claim.task for claim in await self.questions.claim("worker", count=100, block_ms=10)]

    async def put(self, *groups: ScoredGroup) -> None:
        """Straight into the stream: also what a correct worker would never deliver."""
        for group in groups:
            await self.redis.xadd("experience:toy", pack_group(group))  # type: ignore[arg-type]


@pytest.fixture
def scene(redis: Redis) -> Scene:
    return Scene(redis)


def dropped(task: QuestionTask) -> ScoredGroup:
    return ScoredGroup(
        group_id=task.group_id,
        run_id="toy",
        stage="only",
        trajectories=(),
        dropped=DropReason.PROMPT_TOO_LONG,
        detail="too long",
    )


async def test_a_batch_comes_in_slot_order_whatever_the_order_of_delivery(scene: Scene) -> None:
    first, second = await scene.ask(0)
    await scene.put(fixed_group(second), fixed_group(first))

    groups = await scene.collector.collect(0, WEIGHTS)

    assert [group.group_id for group in groups] == ["toy-s000000-q000-a0", "toy-s000000-q001-a0"]


async def test_groups_of_later_batches_wait_for_their_turn(scene: Scene) -> None:
    tasks = await scene.ask(1)
    await scene.put(*(fixed_group(task) for task in reversed(tasks)))

    now = await scene.collector.collect(0, WEIGHTS)
    scene.collector.curriculum.trained(0, search_rate=0, format_rate=0)
    later = await scene.collector.collect(1, WEIGHTS)

    assert [group.group_id for group in now + later] == [task.group_id for task in tasks]


async def test_a_group_that_comes_twice_trains_once_and_is_counted(scene: Scene) -> None:
    first, second = await scene.ask(0)
    await scene.put(fixed_group(first), fixed_group(first), fixed_group(second))

    groups = await scene.collector.collect(0, WEIGHTS)

    assert len(groups) == 2
    assert scene.collector.take_dropped() == {"duplicate": 1}
    assert scene.collector.take_dropped() == {}


async def test_a_group_of_a_batch_already_trained_is_counted_and_forgotten(scene: Scene) -> None:
    tasks = await scene.ask(1)
    await scene.put(*(fixed_group(task) for task in tasks[:2]))
    await scene.collector.collect(0, WEIGHTS)
    scene.collector.curriculum.trained(0, search_rate=0, format_rate=0)
    await scene.put(*(fixed_group(task) for task in (tasks[0], *tasks[2:])))

    await scene.collector.collect(1, WEIGHTS)

    assert scene.collector.take_dropped() == {"already_trained": 1}


async def test_a_dropped_question_is_replaced_and_the_batch_waits_for_its_successor(scene: Scene) -> None:
    first, second = await scene.ask(0)
    await scene.put(dropped(first), fixed_group(second))

    collecting = asyncio.ensure_future(scene.collector.collect(0, WEIGHTS))
    (claim,) = await scene.questions.claim("worker", count=9, block_ms=2_000)
    await scene.put(fixed_group(claim.task))
    groups = await collecting

    assert [group.group_id for group in groups] == ["toy-s000000-q000-a1", "toy-s000000-q001-a0"]
    assert scene.collector.take_dropped() == {"prompt_too_long": 1}


async def test_reading_resumes_just_before_the_earliest_untrained_group(scene: Scene) -> None:
    tasks = await scene.ask(1)
    early, *rest = [tasks[2], tasks[0], tasks[1], tasks[3]]
    await scene.put(fixed_group(early), *(fixed_group(task) for task in rest))
    await scene.collector.collect(0, WEIGHTS)

    resumed = scene.new_collector()
    resumed.curriculum.restore(scene.collector.curriculum.state())
    resumed.curriculum.trained(0, search_rate=0, format_rate=0)
    resumed.cursor = scene.collector.position
    groups = await resumed.collect(1, WEIGHTS)

    assert [group.group_id for group in groups] == [task.group_id for task in tasks[2:]]


async def test_with_everything_trained_reading_resumes_at_the_last_entry(scene: Scene) -> None:
    tasks = await scene.ask(0)
    assert scene.collector.position == START
    await scene.put(*(fixed_group(task) for task in tasks))

    await scene.collector.collect(0, WEIGHTS)

    assert scene.collector.position == scene.collector.cursor != START


async def test_a_question_is_sent_once(scene: Scene) -> None:
    await scene.ask(1)

    assert await scene.ask(1) == []


async def test_a_stop_ends_the_wait(scene: Scene) -> None:
    await scene.ask(0)
    scene.stop.set()

    with pytest.raises(StopRequested):
        await scene.collector.collect(0, WEIGHTS)


async def test_questions_that_redis_lost_are_asked_again_after_a_silence(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "REMIND_SECONDS", 0.0)
    await scene.ask(0)
    await scene.redis.flushall()

    collecting = asyncio.ensure_future(scene.collector.collect(0, WEIGHTS))
    await scene.was_silent.wait()
    claims = await scene.questions.claim("worker", count=1, block_ms=2_000)
    claims += await scene.questions.claim("worker", count=1, block_ms=2_000)
    await scene.put(*(fixed_group(claim.task) for claim in claims))

    assert len(await collecting) == 2


async def test_a_redis_outage_is_waited_out() -> None:
    failures = iter([RedisConnectionError("down"), RedisConnectionError("down")])

    async def flaky() -> str:
        for failure in failures:
            raise failure
        return "up"

    assert await outlast(flaky, asyncio.Event()) == "up"


async def test_during_an_outage_a_stop_is_heard() -> None:
    stop = asyncio.Event()
    stop.set()

    async def down() -> None:
        raise RedisConnectionError("down")

    with pytest.raises(StopRequested):
        await outlast(down, stop)
