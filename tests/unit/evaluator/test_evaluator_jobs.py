"""What Redis remembers of an evaluation, whatever happens to those who work on it."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from searcher.contracts.errors import Conflict, NotFound, Overloaded
from searcher.contracts.question import Question, SearchMode
from searcher.contracts.report import POLICY, EvaluatedQuestion, EvaluationRequest, EvaluationState, System
from searcher.contracts.weights import WeightVersion
from searcher.servicekit.streams import connect, wanted_weights
from services.evaluator.chunks import Claim
from services.evaluator.jobs import Due, Jobs
from services.evaluator.settings import EvaluatorSettings

pytestmark = pytest.mark.anyio

Row = Callable[..., EvaluatedQuestion]
LEASES = "evaluation:e:leases"


def request(num_questions: int = 5, evaluation_id: str = "e") -> EvaluationRequest:
    questions = tuple(Question(id=f"q{i}", question=f"Who is {i}?", answers=("yes",)) for i in range(num_questions))
    return EvaluationRequest(id=evaluation_id, questions=questions)


@pytest.fixture
def jobs(redis: Redis) -> Jobs:
    """Two questions a chunk, two chunks in flight."""
    return Jobs(redis, EvaluatorSettings(chunk_size=2, chunks_in_flight=2, lease_seconds=60, max_crashes=2))


async def claimed(jobs: Jobs, chunk: int, owner: str = "me") -> Claim:
    claim = await jobs.claim("e", chunk, owner=owner)
    assert claim is not None, (chunk, owner)
    return claim


async def let_leases_run_out(redis: Redis) -> None:
    leases: Any = await redis.zrange(LEASES, 0, -1)
    for chunk in leases:
        await redis.zadd(LEASES, {chunk: 1})


async def create(jobs: Jobs, asked: EvaluationRequest) -> None:
    await jobs.create(asked, {"": asked.questions})


def rows_of(claim: Claim, row: Row, **fields: Any) -> list[EvaluatedQuestion]:
    chunk = claim.chunk
    return [row(q.id, benchmark=chunk.benchmark, system=chunk.system, **fields) for q in chunk.questions]


async def answer(jobs: Jobs, claim: Claim, row: Row, *, weights: str = "w", **fields: Any) -> int:
    """What a worker does with a chunk."""
    stored = await jobs.store(claim, rows_of(claim, row, **fields), weights=weights)
    await jobs.finish(claim)
    return stored


async def test_an_evaluation_submitted_twice_exists_once(jobs: Jobs) -> None:
    await create(jobs, request())
    await jobs.take_due("e")
    await create(jobs, request())

    assert await jobs.take_due("e") == Due(again=(), first=())
    assert len(await jobs.newest(10)) == 1


async def test_an_id_with_other_content_is_a_conflict(jobs: Jobs) -> None:
    await create(jobs, request(5))

    with pytest.raises(Conflict, match="other content"):
        await create(jobs, request(6))


async def test_more_open_evaluations_than_allowed_are_refused(redis: Redis) -> None:
    jobs = Jobs(redis, EvaluatorSettings(max_open=1))
    await create(jobs, request(evaluation_id="a"))

    with pytest.raises(Overloaded):
        await create(jobs, request(evaluation_id="b"))


async def test_chunks_are_sent_as_others_finish(jobs: Jobs, row: Row) -> None:
    await create(jobs, request(5))

    assert await jobs.take_due("e") == Due(again=(), first=(0, 1))
    assert await jobs.take_due("e") == Due(again=(), first=())
    claim = await claimed(jobs, 0)
    await answer(jobs, claim, row)
    assert await jobs.take_due("e") == Due(again=(), first=(2,))


async def test_a_chunk_whose_lease_ran_out_is_due_again(jobs: Jobs, redis: Redis) -> None:
    await create(jobs, request(2))
    await jobs.take_due("e")
    await claimed(jobs, 0, "dead")

    await let_leases_run_out(redis)

    assert await jobs.take_due("e") == Due(again=(0,), first=())
    await claimed(jobs, 0, "alive")


async def test_a_chunk_in_work_is_nobody_elses(jobs: Jobs) -> None:
    await create(jobs, request(2))
    await jobs.take_due("e")
    await claimed(jobs, 0, "first")

    assert await jobs.claim("e", 0, owner="second") is None


async def test_a_lease_is_renewed_by_its_owner_only(jobs: Jobs, redis: Redis) -> None:
    await create(jobs, request(2))
    await jobs.take_due("e")
    slow = await claimed(jobs, 0, "slow")
    assert await jobs.renew(slow)

    await let_leases_run_out(redis)
    await jobs.take_due("e")
    fast = await claimed(jobs, 0, "fast")

    assert not await jobs.renew(slow)
    assert await jobs.renew(fast)


async def test_the_first_answer_to_a_question_counts(jobs: Jobs, redis: Redis, row: Row) -> None:
    await create(jobs, request(2))
    await jobs.take_due("e")
    slow = await claimed(jobs, 0, "slow")
    await let_leases_run_out(redis)
    fast = await claimed(jobs, 0, "fast")

    assert await answer(jobs, slow, row, f1=0.0) == 2
    assert await answer(jobs, fast, row, f1=1.0) == 0
    status = await jobs.status("e")

    assert (status.state, status.done, status.total) == (EvaluationState.DONE, 2, 2)
    assert status.partial is not None and status.partial.f1 == 0.0
    assert [row.f1 for row in (await jobs.answered("e")).rows] == [0.0, 0.0]


async def test_status_tells_progress_and_partial_figures(jobs: Jobs, row: Row) -> None:
    await create(jobs, request(4))
    await jobs.take_due("e")
    assert (await jobs.status("e")).state is EvaluationState.QUEUED
    claim = await claimed(jobs, 1)
    await answer(jobs, claim, row, f1=0.5)

    status = await jobs.status("e")

    assert (status.state, status.done, status.total) == (EvaluationState.RUNNING, 2, 4)
    assert status.eta_seconds is not None
    assert status.partial is not None and status.partial.f1 == 0.5


async def test_a_report_lists_questions_in_the_order_asked(jobs: Jobs, row: Row) -> None:
    await create(jobs, request(4))
    await jobs.take_due("e")
    for chunk in (1, 0):
        claim = await claimed(jobs, chunk)
        await answer(jobs, claim, row, weights="run-00000000-000020")

    answered = await jobs.answered("e")

    assert [row.id for row in answered.rows] == ["q0", "q1", "q2", "q3"]
    assert answered.weights == "run-00000000-000020"


async def test_answers_under_two_weight_versions_fail_the_evaluation(jobs: Jobs, row: Row) -> None:
    await create(jobs, request(4))
    await jobs.take_due("e")
    first, second = await claimed(jobs, 0), await claimed(jobs, 1)
    await jobs.store(first, rows_of(first, row), weights="old")

    await jobs.store(second, rows_of(second, row), weights="new")
    status = await jobs.status("e")

    assert status.state is EvaluationState.FAILED
    assert status.error == "weights changed during the evaluation: from old to new"


async def test_an_outage_puts_the_chunk_back(jobs: Jobs, redis: Redis) -> None:
    await create(jobs, request(2))
    await jobs.take_due("e")

    for _ in range(5):  # more often than a chunk may crash: an outage is not the chunk's fault
        await jobs.postpone(await claimed(jobs, 0), reason="rollout did not answer")
        await let_leases_run_out(redis)
        assert (await jobs.take_due("e")).again == (0,)

    assert (await jobs.status("e")).state is EvaluationState.RUNNING


async def test_an_outage_that_does_not_end_fails_the_evaluation(redis: Redis) -> None:
    jobs = Jobs(redis, EvaluatorSettings(outage_seconds=0))
    await create(jobs, request(2))
    await jobs.take_due("e")

    await jobs.postpone(await claimed(jobs, 0), reason="rollout did not answer")

    assert (await jobs.status("e")).error == "no answer for 0 s: rollout did not answer"


async def test_a_chunk_that_kills_every_worker_fails_the_evaluation(jobs: Jobs, redis: Redis) -> None:
    await create(jobs, request(2))
    await jobs.take_due("e")
    for owner in ("first", "second"):
        await claimed(jobs, 0, owner)
        await let_leases_run_out(redis)

    assert await jobs.claim("e", 0, owner="third") is None
    assert (await jobs.status("e")).error == "chunk 0 ended its worker 2 times; see the log of the workers"


async def test_a_closed_evaluation_takes_no_more_answers(jobs: Jobs, row: Row) -> None:
    await create(jobs, request(2))
    await jobs.take_due("e")
    claim = await claimed(jobs, 0)
    await jobs.fail("e", reason="cancelled")

    assert not await jobs.renew(claim)
    assert await jobs.store(claim, rows_of(claim, row), weights="w") == 0
    await jobs.fail("e", reason="too late")
    assert (await jobs.status("e")).error == "cancelled"


SEARCHLESS = System(name="no search", search=SearchMode.NONE)


async def test_every_system_answers_every_question_of_every_benchmark(jobs: Jobs, row: Row) -> None:
    asked = request(1).model_copy(update={"systems": (POLICY, SEARCHLESS)})
    await jobs.create(asked, {"nq": asked.questions, "popqa": asked.questions})  # the same id in both is no repetition
    await jobs.take_due("e")
    for number in range(2):
        claim = await claimed(jobs, number)
        await answer(jobs, claim, row, f1=1.0)
    await jobs.take_due("e")
    for number in (3, 2):
        claim = await claimed(jobs, number)
        assert claim.system == SEARCHLESS
        await answer(jobs, claim, row, f1=0.0, weights="")  # a model behind an API has no version

    answered = await jobs.answered("e")
    status = await jobs.status("e")

    places = [(row.system, row.benchmark, row.id, row.f1) for row in answered.rows]
    assert places == [
        ("policy", "nq", "q0", 1.0),
        ("policy", "popqa", "q0", 1.0),
        ("no search", "nq", "q0", 0.0),
        ("no search", "popqa", "q0", 0.0),
    ]
    assert answered.weights == "w"
    assert (status.state, status.done, status.total) == (EvaluationState.DONE, 4, 4)
    assert status.partial is not None and status.partial.f1 == 0.5


async def test_one_weight_version_holds_across_systems(jobs: Jobs, row: Row) -> None:
    asked = request(1).model_copy(update={"systems": (POLICY, SEARCHLESS)})
    await create(jobs, asked)
    await jobs.take_due("e")
    await answer(jobs, await claimed(jobs, 0), row, weights="old")

    await answer(jobs, await claimed(jobs, 1), row, weights="new")

    assert (await jobs.status("e")).error == "weights changed during the evaluation: from old to new"


async def test_what_is_stored_is_known_to_who_takes_over(jobs: Jobs, redis: Redis, row: Row) -> None:
    await create(jobs, request(2))
    await jobs.take_due("e")
    dying = await claimed(jobs, 0, "dying")
    await jobs.store(dying, rows_of(dying, row)[:1], weights="w")
    await let_leases_run_out(redis)

    successor = await claimed(jobs, 0, "successor")

    assert list(await jobs.answers(successor)) == ["q0"]
    assert (await jobs.status("e")).state is EvaluationState.RUNNING


async def test_a_failed_evaluation_goes_on_where_it_stopped(jobs: Jobs, row: Row) -> None:
    await create(jobs, request(5))
    await jobs.take_due("e")
    await answer(jobs, await claimed(jobs, 0), row, f1=0.25)
    await jobs.fail("e", reason="cancelled")
    await jobs.close("e")

    await jobs.resume("e")
    status = await jobs.status("e")
    assert (status.state, status.done, status.error) == (EvaluationState.QUEUED, 2, None)
    assert await jobs.redis.ttl("evaluation:e") == -1
    await jobs.resume("e")  # twice is once
    assert await jobs.take_due("e") == Due(again=(), first=(1, 2))
    for number in (1, 2):
        await answer(jobs, await claimed(jobs, number), row, f1=1.0)

    assert [row.f1 for row in (await jobs.answered("e")).rows] == [0.25, 0.25, 1.0, 1.0, 1.0]


async def test_a_resumed_evaluation_still_wants_its_weights(jobs: Jobs, row: Row) -> None:
    await create(jobs, request(4))
    await jobs.take_due("e")
    await answer(jobs, await claimed(jobs, 0), row, weights="old")
    await jobs.fail("e", reason="no answer for 1800 s")
    await jobs.resume("e")
    await jobs.take_due("e")

    await answer(jobs, await claimed(jobs, 1), row, weights="new")

    assert (await jobs.status("e")).error == "weights changed during the evaluation: from old to new"


async def test_a_failed_evaluation_with_all_answers_only_needs_its_end(jobs: Jobs, row: Row) -> None:
    await create(jobs, request(2))
    await jobs.take_due("e")
    claim = await claimed(jobs, 0)
    await jobs.store(claim, rows_of(claim, row), weights="w")
    await jobs.fail("e", reason="cancelled")

    await jobs.resume("e")
    await jobs.take_due("e")
    await jobs.finish(await claimed(jobs, 0))

    assert (await jobs.status("e")).state is EvaluationState.DONE


async def test_what_is_done_cannot_be_resumed(jobs: Jobs, row: Row) -> None:
    await create(jobs, request(2))
    await jobs.take_due("e")
    await answer(jobs, await claimed(jobs, 0), row)

    with pytest.raises(Conflict, match="nothing is left to do"):
        await jobs.resume("e")
    with pytest.raises(NotFound):
        await jobs.resume("nobody")


async def test_verdicts_join_the_answers_that_count(jobs: Jobs, row: Row) -> None:
    await create(jobs, request(2).model_copy(update={"judge": True}))
    await jobs.take_due("e")
    claim = await claimed(jobs, 0)
    await jobs.store(claim, rows_of(claim, row), weights="w")

    assert await jobs.judge(claim, {"q0": True, "q1": False}, problem="") == 2
    assert await jobs.judge(claim, {"q0": False, "q1": False}, problem="") == 0  # the first verdict counts, too
    status = await jobs.status("e")
    await jobs.finish(claim)

    assert status.partial is not None and (status.partial.judge, status.partial.num_judged) == (0.5, 2)
    assert [row.judge for row in (await jobs.answered("e")).rows] == [True, False]


async def test_only_what_was_not_judged_is_taken_up_again(jobs: Jobs, row: Row) -> None:
    await create(jobs, request(4).model_copy(update={"judge": True}))
    await jobs.take_due("e")
    for number, verdicts in ((0, {"q0": True, "q1": True}), (1, {"q2": False})):
        claim = await claimed(jobs, number)
        await jobs.store(claim, rows_of(claim, row), weights="w")
        await jobs.judge(claim, verdicts, problem="" if number == 0 else "judge did not answer")
        await jobs.finish(claim)
    assert (await jobs.answered("e")).not_judged == "judge did not answer"

    await jobs.resume("e")
    assert await jobs.take_due("e") == Due(again=(), first=(1,))
    claim = await claimed(jobs, 1)
    assert [row.judge for row in (await jobs.answers(claim)).values()] == [False, None]
    await jobs.judge(claim, {"q3": True}, problem="")
    await jobs.finish(claim)

    answered, status = await jobs.answered("e"), await jobs.status("e")
    assert [row.judge for row in answered.rows] == [True, True, False, True]
    assert answered.not_judged == ""
    assert status.partial is not None and (status.partial.judge, status.partial.num_judged) == (0.75, 4)


def version(step: int) -> WeightVersion:
    return WeightVersion(run_id="run", step=step, location="file:///nowhere", sha256="a" * 64, num_bytes=1)


async def test_evaluations_that_bring_their_weights_take_turns(jobs: Jobs, row: Row) -> None:
    for name, step in (("e", 20), ("second", 40)):
        await create(jobs, request(2, name).model_copy(update={"version": version(step)}))
    await create(jobs, request(2, "any"))

    assert await jobs.take_due("second") == Due(again=(), first=())
    assert await jobs.take_due("e") == Due(again=(), first=(0,))
    assert await jobs.take_due("any") == Due(again=(), first=(0,))
    assert await wanted_weights(jobs.redis, purpose="evaluation") == version(20)
    claim = await claimed(jobs, 0)
    assert claim.outline.demanded_weights == version(20).name
    await answer(jobs, claim, row, weights=version(20).name)

    assert await jobs.take_due("second") == Due(again=(), first=(0,))
    assert await wanted_weights(jobs.redis, purpose="evaluation") == version(40)
    assert await wanted_weights(jobs.redis) is None  # training's engines are left alone


async def test_a_failed_evaluation_gives_its_turn_to_the_next(jobs: Jobs) -> None:
    for name, step in (("e", 20), ("second", 40)):
        await create(jobs, request(2, name).model_copy(update={"version": version(step)}))

    await jobs.fail("e", reason="cancelled")

    assert await jobs.take_due("second") == Due(again=(), first=(0,))


async def test_a_forgotten_evaluation_is_not_found_and_not_listed(jobs: Jobs, redis: Redis) -> None:
    await create(jobs, request(2))
    await jobs.close("e")
    await redis.delete("evaluation:e")

    assert await jobs.newest(10) == []
    assert await jobs.open_ids() == []
    with pytest.raises(NotFound):
        await jobs.status("e")


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**9))
def test_no_answer_is_lost_or_counted_twice_whatever_happens_to_workers(redis_url: str, row: Row, seed: int) -> None:
    """Workers claim, die, wake up late and store twice; tasks get lost or arrive again."""
    state = asyncio.run(_survive(redis_url, row, random.Random(seed)))

    assert state == (EvaluationState.DONE, 7, 7, 7)


async def _survive(redis_url: str, row: Row, chance: random.Random) -> tuple[EvaluationState, int, int, int]:
    async with connect(redis_url) as redis:
        await redis.flushall()
        jobs = Jobs(redis, EvaluatorSettings(chunk_size=2, chunks_in_flight=2, lease_seconds=60, max_crashes=1_000))
        await create(jobs, request(7))
        tasks: list[int] = []
        claims: list[Claim] = []
        stored = 0
        while (await jobs.status("e")).state in (EvaluationState.QUEUED, EvaluationState.RUNNING):
            match chance.choice(["send", "claim", "lose", "repeat", "store", "die", "time passes"]):
                case "send":
                    due = await jobs.take_due("e")
                    tasks += [*due.again, *due.first]
                case "claim" if tasks:
                    claim = await jobs.claim("e", tasks.pop(), owner=str(chance.random()))
                    claims += [claim] if claim else []
                case "lose" if tasks:
                    tasks.pop()
                case "repeat" if tasks:
                    tasks.append(chance.choice(tasks))
                case "store" if claims:
                    claim = chance.choice(claims)  # stays in the list: it may store again
                    stored += await jobs.store(claim, rows_of(claim, row), weights="w")
                    if chance.random() < 0.7:  # else it dies in between
                        await jobs.finish(claim)
                case "die" if claims:
                    claims.pop()
                case "time passes":
                    await let_leases_run_out(redis)
        status = await jobs.status("e")
        return status.state, status.done, status.total, stored
