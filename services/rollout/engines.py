"""Engines: which one gets the next turn, and which weights each of them holds.

Two halves. `Session.sample` sends a turn to a ready engine and, if that fails, to another one: it is all in the ids, so
that is safe. `Engines.run` compares, for each engine and forever, the wanted weights with those it holds. Boot, update,
restart and scale-up are the same case: they differ, so the engine is updated before it is routed to.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from searcher.clients.engine import EngineClient, PromptTooLong, Sampled, Sampling
from searcher.contracts.errors import Conflict, SearcherError, UpstreamUnavailable
from searcher.contracts.weights import EngineState, EngineStatus, Purpose, WeightsStatus, WeightVersion
from searcher.servicekit.streams import wanted_weights
from services.rollout import metrics
from services.rollout.tasks import running, was_cancelled

log = structlog.get_logger()

UPDATE_LEASE_SECONDS = 10.0
MAX_BACKOFF_SECONDS = 30.0


@dataclass
class Engine:
    client: EngineClient
    state: EngineState = EngineState.DOWN
    version: str = ""
    turns: set[asyncio.Task[Sampled]] = field(default_factory=set)
    """Those in flight."""
    look: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to have it compared now rather than at the next interval."""

    @property
    def url(self) -> str:
        return self.client.base_url

    async def turn(self, token_ids: list[int], sampling: Sampling) -> Sampled:
        """Raises UpstreamUnavailable also if the engine is found to be down while it has the turn."""
        task = asyncio.create_task(self.client.generate(token_ids, sampling))
        self.turns.add(task)
        try:
            await asyncio.wait({task})
            if task.cancelled():
                raise UpstreamUnavailable(f"engine at {self.url} went down in the middle of a turn")
            return task.result()
        finally:
            task.cancel()
            self.turns.discard(task)


class Engines:
    def __init__(
        self,
        clients: Sequence[EngineClient],
        redis: Redis,
        *,
        purpose: Purpose = "training",
        reconcile_seconds: float = 0.2,
        outage_seconds: float = 300.0,
    ) -> None:
        self.engines = [Engine(client) for client in clients]
        self.redis, self.purpose = redis, purpose
        self.reconcile_seconds, self.outage_seconds = reconcile_seconds, outage_seconds
        self.wanted: WeightVersion | None = None
        self._knows_wanted = False
        self._changed = asyncio.Event()

    @property
    def ready(self) -> list[Engine]:
        return [engine for engine in self.engines if engine.state is EngineState.READY]

    def session(self) -> "Session":
        """A policy for one trajectory."""
        return Session(self)

    def status(self) -> WeightsStatus:
        rows = (EngineStatus(url=e.url, state=e.state, version=e.version, in_flight=len(e.turns)) for e in self.engines)
        return WeightsStatus(wanted=self.wanted, engines=tuple(rows))

    async def hold(self, weights: WeightVersion | None) -> None:
        """Return once an engine is ready and every ready one holds `weights` or newer ones of the same run.

        Raises UpstreamUnavailable if that is not so within `outage_seconds`.
        """
        await self.refresh()
        async with self._deadline(f"no engine holds {weights.name if weights else 'any weights'}"):
            while not (self.ready and (weights is None or self._wants(weights))):
                await self._changed.wait()

    async def hold_named(self, version: str | None) -> None:
        """Return once an engine is ready with the weights of that name. Raises Conflict if others are wanted."""
        await self.refresh()
        async with self._deadline(f"no engine holds {version or 'the wanted weights'}"):
            while not self.ready:
                self._refuse_unless_wanted(version)
                await self._changed.wait()
        self._refuse_unless_wanted(version)

    def _refuse_unless_wanted(self, version: str | None) -> None:
        held = {engine.version for engine in self.ready}
        if not held and self.wanted is not None:
            held = {self.wanted.name}
        if version is not None and held and held != {version}:
            raise Conflict(f"weights: {version!r} is demanded, but the engines hold {', '.join(sorted(held))}")

    def _wants(self, weights: WeightVersion) -> bool:
        """Ready engines hold exactly what is wanted, so it is enough to look at that."""
        wanted = self.wanted
        return wanted is not None and (
            wanted == weights or (wanted.run_id == weights.run_id and wanted.step > weights.step)
        )

    async def least_loaded(self) -> Engine:
        """Waits out an outage. Raises UpstreamUnavailable if no engine is ready within `outage_seconds`."""
        async with self._deadline("no engine is ready"):
            while not self.ready:
                await self._changed.wait()
        return min(self.ready, key=lambda engine: len(engine.turns))

    def suspect(self, engine: Engine, error: UpstreamUnavailable) -> None:
        """Route nothing to an engine that failed a turn until it has been looked at, which happens now."""
        log.warning("turn failed", engine=engine.url, error=str(error))
        self._set_state(engine, EngineState.DOWN)
        engine.look.set()

    async def run(self) -> None:
        """Reconcile all engines until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for engine in self.engines:
                tasks.create_task(self._tend(engine))

    async def refresh(self) -> None:
        """Read the wanted weights; without Redis, the last known ones stay wanted."""
        try:
            wanted = await wanted_weights(self.redis, purpose=self.purpose)
        except (RedisError, OSError) as error:
            if self._knows_wanted:
                return
            raise UpstreamUnavailable(f"Redis does not tell which weights are wanted: {error}") from error
        self._knows_wanted = True
        if wanted != self.wanted:
            self.wanted = wanted
            log.info("weights wanted", version=wanted and wanted.name)
            for engine in self.ready:
                if wanted is not None and engine.version != wanted.name:
                    self._set_state(engine, EngineState.UPDATING)
            self._notify()
            for engine in self.engines:
                engine.look.set()

    async def _tend(self, engine: Engine) -> None:
        failures = 0
        while not was_cancelled():
            engine.look.clear()
            try:
                await self._reconcile(engine)
                failures = 0
            except Exception as error:
                failures += 1
                if failures.bit_count() == 1:  # the 1st, 2nd, 4th, 8th, …
                    known = isinstance(error, SearcherError | RedisError | OSError)
                    fields = {"engine": engine.url, "failures": failures, "error": str(error)}
                    log.warning("engine not ready", **fields, exc_info=not known)
            pause = self.reconcile_seconds
            if engine.state is EngineState.UPDATING:  # a damaged file costs the engine a read of it every time
                pause = min(pause * 2 ** min(failures, 10), MAX_BACKOFF_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await engine.look.wait()

    async def _reconcile(self, engine: Engine) -> None:
        await self.refresh()
        try:
            engine.version = await engine.client.weight_version()
        except SearcherError:
            self._set_state(engine, EngineState.DOWN)
            for turn in engine.turns:  # a hung engine never answers them; they are sent elsewhere
                turn.cancel()
            raise
        wanted = self.wanted
        if wanted is None or engine.version == wanted.name:
            if engine.state is EngineState.READY:
                return
            async with self._sole_updater(engine) as is_mine:
                if is_mine:
                    await engine.client.resume()  # whoever updated it may have died before this
                    self._set_state(engine, EngineState.READY)
            return
        self._set_state(engine, EngineState.UPDATING)
        async with self._sole_updater(engine) as is_mine:
            if is_mine:
                await self._update(engine, wanted)

    async def _update(self, engine: Engine, wanted: WeightVersion) -> None:
        started = asyncio.get_running_loop().time()
        try:
            await engine.client.update_weights(wanted)
        except SearcherError:
            metrics.WEIGHT_UPDATE_FAILURES.labels(engine.url).inc()
            raise
        seconds = asyncio.get_running_loop().time() - started
        metrics.WEIGHT_UPDATE_SECONDS.observe(seconds)
        log.info("weights updated", engine=engine.url, version=wanted.name, seconds=round(seconds, 3))
        engine.version = wanted.name
        if self.wanted == wanted:
            self._set_state(engine, EngineState.READY)
        else:
            engine.look.set()

    @asynccontextmanager
    async def _sole_updater(self, engine: Engine) -> AsyncIterator[bool]:
        """Several rollout processes may share an engine; one at a time may pause it. False: another one does."""
        lock = self.redis.lock(f"engine:{engine.url}:update", timeout=UPDATE_LEASE_SECONDS)
        if not await lock.acquire(blocking=False):
            self._set_state(engine, EngineState.UPDATING)
            yield False
            return

        async def renew() -> None:
            while not was_cancelled():
                await asyncio.sleep(UPDATE_LEASE_SECONDS / 3)
                with suppress(RedisError):
                    await lock.reacquire()

        try:
            async with running(renew()):
                yield True
        finally:
            with suppress(RedisError):  # expired: then nothing is left to give back
                await lock.release()

    def _set_state(self, engine: Engine, state: EngineState) -> None:
        if engine.state is not state:
            engine.state = state
            for each in EngineState:
                metrics.ENGINE_STATE.labels(engine.url, each.value).set(each is state)
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def _deadline(self, problem: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.outage_seconds):
                yield
        except TimeoutError:
            seen = ", ".join(f"{engine.url} {engine.state} {engine.version}".rstrip() for engine in self.engines)
            raise UpstreamUnavailable(f"{problem} after {self.outage_seconds:g} s ({seen})") from None


class Session:
    """One trajectory's way to the engines: it stays with the one that has its prefix cached."""

    def __init__(self, engines: Engines) -> None:
        self.engines = engines
        self.engine: Engine | None = None
        self.versions: set[str] = set()
        """Names of all weights that sampled a token of this trajectory."""

    async def sample(self, token_ids: list[int], sampling: Sampling) -> Sampled | None:
        """The next turn; None where the context is full. Raises UpstreamUnavailable after `outage_seconds`."""
        clock = asyncio.get_running_loop().time
        started, failures, give_up_at = clock(), 0, float("inf")
        while True:
            engine = self.engine
            if engine is None or engine.state is not EngineState.READY:
                engine = self.engine = await self.engines.least_loaded()
            try:
                turn = await engine.turn(token_ids, sampling)
            except PromptTooLong:
                return None
            except UpstreamUnavailable as error:
                failures += 1
                give_up_at = min(give_up_at, clock() + self.engines.outage_seconds)
                if clock() > give_up_at:
                    raise
                self.engines.suspect(engine, error)
                metrics.RESENT.inc()
                await asyncio.sleep(random.uniform(0.0, min(0.05 * 2**failures, 2.0)))
                continue
            metrics.TURNS.inc()
            metrics.TURN_SECONDS.observe(clock() - started)
            self.versions.update(turn.versions)
            return turn
