"""Which engine gets a turn, and which weights each engine holds."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from redis.asyncio import Redis
from rollout_toys import ToyEngine, reconciling, until, weights

from searcher.clients.engine import Sampling
from searcher.contracts.errors import Conflict, UpstreamUnavailable
from searcher.contracts.weights import EngineState
from searcher.servicekit.streams import announce_weights
from services.rollout.engines import Engines

pytestmark = pytest.mark.anyio

IDS = [ord(letter) for letter in "User:Who?\nAssistant: <think>"]
SAMPLING = Sampling(max_tokens=1_000)


def engines_of(redis: Redis, *engines: ToyEngine, outage_seconds: float = 30.0) -> Engines:
    clients = [engine.client(f"http://engine-{number}") for number, engine in enumerate(engines)]
    return Engines(clients, redis, reconcile_seconds=0.01, outage_seconds=outage_seconds)


async def test_before_any_run_engines_serve_the_model_they_were_started_with(redis: Redis) -> None:
    async with reconciling(engines_of(redis, ToyEngine())) as engines:
        await engines.hold(None)
        turn = await engines.session().sample(IDS, SAMPLING)

    assert turn is not None
    assert set(turn.versions) == {"default"}


async def test_an_engine_is_updated_before_it_gets_a_turn(redis: Redis) -> None:
    engine = ToyEngine()
    await announce_weights(redis, weights(3))

    async with reconciling(engines_of(redis, engine)) as engines:
        turn = await engines.session().sample(IDS, SAMPLING)

    assert turn is not None
    assert set(turn.versions) == {weights(3).name}
    assert not engine.paused


async def test_a_restarted_engine_is_updated_again_before_it_gets_a_turn(redis: Redis) -> None:
    engine = ToyEngine()
    await announce_weights(redis, weights(3))
    async with reconciling(engines_of(redis, engine)) as engines:
        await engines.hold(weights(3))

        engine.down = True
        await until(lambda: not engines.ready)
        engine.version, engine.down = "default", False
        turn = await engines.session().sample(IDS, SAMPLING)

    assert turn is not None
    assert set(turn.versions) == {weights(3).name}
    assert engine.updates == [weights(3).name] * 2


async def test_an_engine_left_paused_by_a_dead_rollout_is_resumed(redis: Redis) -> None:
    engine = ToyEngine()
    engine.version, engine.paused = weights(3).name, True
    await announce_weights(redis, weights(3))

    async with reconciling(engines_of(redis, engine)) as engines:
        await engines.hold(weights(3))

    assert not engine.paused
    assert engine.updates == []


async def test_a_file_that_an_engine_refuses_is_offered_again_and_nothing_is_routed_meanwhile(redis: Redis) -> None:
    engine = ToyEngine()
    engine.bad_updates = 2
    await announce_weights(redis, weights(3))

    async with reconciling(engines_of(redis, engine)) as engines:
        turn = await engines.session().sample(IDS, SAMPLING)

    assert turn is not None
    assert set(turn.versions) == {weights(3).name}
    assert len(engine.turns) == 1


async def test_an_update_interrupts_no_turn(redis: Redis) -> None:
    engine = ToyEngine()
    async with reconciling(engines_of(redis, engine)) as engines:
        await engines.hold(None)
        engine.gate.clear()
        turn = asyncio.create_task(engines.session().sample(IDS, SAMPLING))
        await engine.arrived.wait()

        await announce_weights(redis, weights(1))
        await engines.hold(weights(1))
        engine.gate.set()

        assert await turn is not None
    assert len(engine.turns) == 1


async def test_demanding_newer_weights_waits_for_them(redis: Redis) -> None:
    await announce_weights(redis, weights(1))
    async with reconciling(engines_of(redis, ToyEngine())) as engines:
        await engines.hold(weights(1))
        waiting = asyncio.create_task(engines.hold(weights(2)))
        await asyncio.sleep(0.05)
        assert not waiting.done()

        await announce_weights(redis, weights(2))

        await asyncio.wait_for(waiting, 10)
        assert [engine.version for engine in engines.ready] == [weights(2).name]


@pytest.mark.parametrize("other", [weights(9, run_id="other"), weights(2), weights(3, sha256="b" * 64)])
async def test_other_weights_are_not_the_demanded_ones(redis: Redis, other: object) -> None:
    await announce_weights(redis, other)  # type: ignore[arg-type]
    async with reconciling(engines_of(redis, ToyEngine(), outage_seconds=0.1)) as engines:
        with pytest.raises(UpstreamUnavailable, match="000003"):
            await engines.hold(weights(3))


async def test_newer_weights_of_the_same_run_will_do(redis: Redis) -> None:
    await announce_weights(redis, weights(4))
    async with reconciling(engines_of(redis, ToyEngine())) as engines:
        await engines.hold(weights(3))


async def test_weights_demanded_by_name_are_a_conflict_when_others_are_wanted(redis: Redis) -> None:
    await announce_weights(redis, weights(4))
    async with reconciling(engines_of(redis, ToyEngine())) as engines:
        await engines.hold_named(weights(4).name)
        with pytest.raises(Conflict, match="000003"):
            await engines.hold_named(weights(3).name)


async def test_a_turn_of_a_dead_engine_goes_to_another_with_the_same_ids(redis: Redis) -> None:
    first, second = ToyEngine(), ToyEngine()
    async with reconciling(engines_of(redis, first, second)) as engines:
        await until(lambda: len(engines.ready) == 2)
        first.gate.clear()
        turn = asyncio.create_task(engines.session().sample(IDS, SAMPLING))
        await first.arrived.wait()

        first.down = True  # hangs: the turn in flight would never come back

        assert await asyncio.wait_for(turn, 10) is not None
    assert first.turns == second.turns == [IDS]


async def test_a_turn_that_fails_is_sent_again(redis: Redis) -> None:
    engine = ToyEngine()
    engine.broken_turns = 2
    async with reconciling(engines_of(redis, engine)) as engines:
        await engines.hold(None)

        turn = await engines.session().sample(IDS, SAMPLING)

    assert turn is not None
    assert len(engine.turns) == 3


async def test_an_outage_is_waited_out(redis: Redis) -> None:
    engine = ToyEngine()
    engine.down = True
    async with reconciling(engines_of(redis, engine)) as engines:
        turn = asyncio.create_task(engines.session().sample(IDS, SAMPLING))
        await asyncio.sleep(0.05)

        engine.down = False

        assert await asyncio.wait_for(turn, 10) is not None


async def test_an_outage_longer_than_the_deadline_is_an_error(redis: Redis) -> None:
    engine = ToyEngine()
    engine.down = True
    async with reconciling(engines_of(redis, engine, outage_seconds=0.1)) as engines:
        with pytest.raises(UpstreamUnavailable, match="http://engine-0 down"):
            await engines.session().sample(IDS, SAMPLING)


async def test_a_full_context_is_a_fact_and_not_an_error(redis: Redis) -> None:
    async with reconciling(engines_of(redis, ToyEngine(max_model_len=10))) as engines:
        assert await engines.session().sample(IDS, SAMPLING) is None


async def test_a_trajectory_stays_with_its_engine_and_a_new_one_goes_to_the_idle_engine(redis: Redis) -> None:
    first, second = ToyEngine(), ToyEngine()
    async with reconciling(engines_of(redis, first, second)) as engines:
        await until(lambda: len(engines.ready) == 2)
        session = engines.session()
        await session.sample(IDS, SAMPLING)
        first.gate.clear()
        busy = asyncio.create_task(session.sample(IDS, SAMPLING))
        await until(lambda: len(first.turns) == 2)

        await engines.session().sample(IDS, SAMPLING)
        first.gate.set()
        await busy

    assert (len(first.turns), len(second.turns)) == (2, 1)


async def test_two_rollout_processes_update_an_engine_once(redis: Redis) -> None:
    engine = ToyEngine()
    await announce_weights(redis, weights(1))
    async with AsyncExitStack() as stack:
        both = [await stack.enter_async_context(reconciling(engines_of(redis, engine))) for _ in range(2)]
        for engines in both:
            await engines.hold(weights(1))

    assert engine.updates == [weights(1).name]


async def test_the_status_names_every_engine(redis: Redis) -> None:
    alive, dead = ToyEngine(), ToyEngine()
    dead.down = True
    await announce_weights(redis, weights(1))
    async with reconciling(engines_of(redis, alive, dead)) as engines:
        await engines.hold(weights(1))
        status = engines.status()

    assert status.wanted == weights(1)
    assert [(row.url, row.state, row.version) for row in status.engines] == [
        ("http://engine-0", EngineState.READY, weights(1).name),
        ("http://engine-1", EngineState.DOWN, ""),
    ]
