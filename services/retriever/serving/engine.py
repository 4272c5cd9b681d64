"""Queries -> hits, many callers at a time. No HTTP here, and no passages: hits are rows of a corpus.

    callers (event loop)  --cache, flights, lanes-->  engine thread  --hits-->  callers

One thread owns encoders and indexes. It takes whatever waits the moment it is free, so a batch is one query when it is
quiet and grows by itself under load; nobody ever waits for a batch to fill. A query that somebody asked already and
that is not yet answered is not asked again: it is one flight with several callers.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import structlog
from prometheus_client import Counter

from searcher.contracts.errors import NotReady, Overloaded, SearcherError
from services.retriever import metrics
from services.retriever.index.protocol import NOTHING
from services.retriever.serving.cache import HitCache, Hits, Key, SharedCache, cache_key
from services.retriever.serving.lanes import Lanes, Request, Waiting
from services.retriever.serving.library import Corpus
from services.retriever.serving.pace import Pace

log = structlog.get_logger()

T = TypeVar("T")

_PART_OF_DEADLINE = 0.8
"""Hits must be there this early: batches vary, and the answer is still to be written and to be read."""
_LOOK_AGAIN_SECONDS = 0.05
"""How often a patient caller asks whether there is room now."""
_PROOF_SECONDS = 10.0
"""A search that succeeded proves for so long that the engine works."""
_STUCK_SECONDS = 60.0
"""No batch takes so long; a search that does not come back will not."""

_HITS, _MISSES, _COALESCED = (metrics.CACHE_LOOKUPS.labels(outcome) for outcome in ("hit", "miss", "coalesced"))


@dataclass
class _Errand:
    """Something else that must happen in the engine's thread, between two batches."""

    action: Callable[[], object]
    done: "Future[object]"


class Engine:
    """Start it in the event loop whose callers it serves."""

    def __init__(
        self,
        *,
        max_batch: int = 64,
        bulk_slice: int = 16,
        interactive_queries: int = 16,
        cache_entries: int = 0,
        shared_cache: SharedCache | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_batch, self.interactive_queries = max_batch, interactive_queries
        self.cache = HitCache(cache_entries)
        self.shared_cache = shared_cache
        self._clock = clock
        self._lanes = Lanes(max_batch=max_batch, bulk_slice=bulk_slice)
        self._errands: list[_Errand] = []
        self._flights: dict[Key, Waiting] = {}
        self._lookups: set[asyncio.Task[None]] = set()
        self.pace = Pace(max_batch)
        self._proven_at = float("-inf")
        self._running = self._closing = False
        self._changed = threading.Lock()
        """Of the lanes, the errands and the end."""
        self._bell, self._asleep = threading.Lock(), False
        self._bell.acquire()
        self._thread = threading.Thread(target=self._run, name="retriever-engine", daemon=True)

    # -- in the event loop --------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        metrics.WAITING.set_function(lambda: self._estimate_wait(bulk=False)[0])
        metrics.WAIT_ESTIMATE.set_function(lambda: self._estimate_wait(bulk=False)[1])
        self._running = True
        self._thread.start()

    async def close(self) -> None:
        """Answer what waits, then stop."""
        await asyncio.gather(*self._lookups)
        with self._changed:
            self._closing = True
            self._wake()
        await asyncio.to_thread(self._thread.join)
        await asyncio.sleep(0)  # what the thread called for last
        await asyncio.gather(*self._lookups)
        if self.shared_cache is not None:
            await self.shared_cache.close()

    def check(self) -> None:
        """Raises NotReady if nobody would answer."""
        if self._closing or not self._running:
            raise NotReady("the search engine is not running")
        if (seconds := self.pace.busy_seconds(self._clock())) > _STUCK_SECONDS:
            raise NotReady(f"one search has been running for {seconds:.0f} s")

    @property
    def is_proven(self) -> bool:
        """A search succeeded a moment ago."""
        return self._clock() - self._proven_at < _PROOF_SECONDS

    def prove(self) -> None:
        """The golden query succeeded."""
        self._proven_at = self._clock()

    async def run(self, action: Callable[[], T]) -> T:
        """Do it in the engine's thread, before the next batch. For what touches encoders and indexes."""
        self.check()
        done: Future[object] = Future()
        with self._changed:
            self._errands.append(_Errand(action, done))
            self._wake()
        result: T = await asyncio.wrap_future(done)  # type: ignore[arg-type]
        return result

    async def search(
        self,
        queries: Sequence[str],
        *,
        corpus: Corpus,
        k_Q: Sequence[int],
        deadline_seconds: float,
        patient: bool = False,
    ) -> list[Hits]:
        """Hits per query, in the order asked.

        Raises Overloaded if they cannot be had inside the deadline: at once where that can be foreseen. A `patient`
        caller waits for room until then instead, and once its search has begun, to the end. Cancel it to leave.
        """
        now = self._clock()
        request = Request(deadline=now + deadline_seconds, since=now)
        keys = [cache_key(corpus.identity, query, k) for query, k in zip(queries, k_Q, strict=True)]
        found: dict[Key, Hits] = {}
        missing: dict[Key, tuple[str, int]] = {}
        hit = 0
        for key, query, k in zip(keys, queries, k_Q, strict=True):
            hits = self.cache.get(key)
            if hits is None:
                missing[key] = query, k
            else:
                hit += 1
                found[key] = hits
        _count(_HITS, hit)
        _count(_COALESCED, len(queries) - hit - len(missing))
        if missing:
            found |= await self._ask(missing, corpus, request, patient=patient)
        return [found[key] for key in keys]

    async def _ask(
        self, missing: dict[Key, tuple[str, int]], corpus: Corpus, request: Request, *, patient: bool
    ) -> dict[Key, Hits]:
        self.check()
        request.bulk = len(missing) > self.interactive_queries
        await self._admit(len(missing), request, patient=patient)
        callers, new = self._board(missing, corpus, request)
        if self.shared_cache is None:
            self._enqueue(new, request)
        elif new:
            lookup = asyncio.create_task(self._look_up(new, request, self.shared_cache))
            self._lookups.add(lookup)
            lookup.add_done_callback(self._lookups.discard)
        # Others are at work now: what is done here meanwhile costs the caller nothing.
        remaining = request.deadline - self._clock()
        expiry = None if patient else self._loop.call_later(max(0.0, remaining), self._expire, request, callers)
        _count(_MISSES, len(new))
        _count(_COALESCED, len(missing) - len(new))
        try:
            if len(callers) == 1:
                ((key, caller),) = callers.items()
                return {key: await caller}
            return dict(zip(callers, await asyncio.gather(*callers.values()), strict=True))
        finally:
            if expiry is not None:
                expiry.cancel()
            for caller in callers.values():
                caller.cancel()

    def _expire(self, request: Request, callers: dict[Key, "asyncio.Future[Hits]"]) -> None:
        late = [caller for caller in callers.values() if not caller.done()]
        if not late:
            return
        request.expired = True
        metrics.REJECTED.labels("expired").inc(len(callers))
        waited = self._clock() - request.since
        for caller in late:
            caller.set_exception(Overloaded(f"not answered in {waited:.2g} s", retry_after_seconds=waited))

    def _board(
        self, missing: dict[Key, tuple[str, int]], corpus: Corpus, request: Request
    ) -> tuple[dict[Key, "asyncio.Future[Hits]"], list[Waiting]]:
        """A future per key, and the flights that are new."""
        callers: dict[Key, asyncio.Future[Hits]] = {}
        new: list[Waiting] = []
        for key, (query, k) in missing.items():
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = Waiting(key, query, k, corpus, [request])
                new.append(flight)
            else:
                hurry = not request.bulk and all(other.bulk for other in flight.requests)
                flight.requests.append(request)
                if hurry:
                    with self._changed:
                        self._lanes.promote(flight)
            callers[key] = self._loop.create_future()
            flight.callers.append(callers[key])
        return callers, new

    async def _look_up(self, new: list[Waiting], request: Request, shared_cache: SharedCache) -> None:
        """What a replica found already need not be searched."""
        known = await shared_cache.get([job.key for job in new])
        self._settle([job for job in new if job.key in known], [known[job.key] for job in new if job.key in known])
        self._enqueue([job for job in new if job.key not in known], request)

    def _enqueue(self, jobs: list[Waiting], request: Request) -> None:
        if jobs:
            with self._changed:
                self._lanes.add(jobs, bulk=request.bulk)
                self._wake()

    def _wake(self) -> None:
        """Ring for the engine's thread, if it sleeps. Called with the lock held. A bare lock is the bell: waking is on
        every quiet query's way, and a threading.Condition takes twice as long."""
        if self._asleep:
            self._asleep = False
            self._bell.release()

    async def _admit(self, num_queries: int, request: Request, *, patient: bool) -> None:
        """When nobody else waits, any request is served, however short its deadline: that mends a wrong estimate."""
        while True:
            ahead, seconds = self._estimate_wait(bulk=request.bulk)
            remaining = request.deadline - self._clock()
            if not ahead or seconds + self.pace.seconds_for(num_queries) <= _PART_OF_DEADLINE * remaining:
                return
            if not patient or remaining <= _LOOK_AGAIN_SECONDS:
                metrics.REJECTED.labels("overloaded").inc(num_queries)
                raise Overloaded(f"{ahead} queries wait, about {seconds:.1f} s", retry_after_seconds=seconds)
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    def _estimate_wait(self, *, bulk: bool) -> tuple[int, float]:
        """Queries ahead of one that arrives now, and seconds until it is its turn."""
        ahead = self._lanes.ahead(bulk=bulk)
        return ahead + self.pace.in_hand, self.pace.seconds_until(ahead, self._clock())

    def _settle(self, jobs: Sequence[Waiting], outcomes: Sequence[Hits | Exception]) -> None:
        """Hand over to all callers. Called in the event loop."""
        for job, outcome in zip(jobs, outcomes, strict=True):
            self._flights.pop(job.key, None)
            if isinstance(outcome, Hits):
                self.cache.put(job.key, outcome)
            for caller in job.callers:
                if caller.done():  # left while it was searched
                    continue
                if isinstance(outcome, Exception):
                    caller.set_exception(outcome)
                else:
                    caller.set_result(outcome)

    def _give_up(self, job: Waiting, deadline: float) -> None:
        """Called in the event loop. Unless somebody boarded in this very moment who has more time than `deadline`."""
        if job.is_left:
            del self._flights[job.key]
            if not any(request.expired for request in job.requests):
                metrics.REJECTED.labels("cancelled").inc()
        elif deadline < job.deadline:
            job.taken = False
            self._enqueue([job], job.requests[-1])
        else:
            metrics.REJECTED.labels("expired").inc()
            waited = self._clock() - job.since
            self._settle([job], [Overloaded(f"waited {waited:.1f} s", retry_after_seconds=waited)])

    def _share(self, jobs: Sequence[Waiting], outcomes: Sequence[Hits]) -> None:
        assert self.shared_cache is not None
        entries = {job.key: hits for job, hits in zip(jobs, outcomes, strict=True)}
        task = asyncio.ensure_future(self.shared_cache.put(entries))
        self._lookups.add(task)
        task.add_done_callback(self._lookups.discard)

    # -- in the engine's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._wait():
                self._do_errands()
                wanted = self._wanted(self._take())
                self.pace.in_hand = len(wanted)
                for (corpus, k), jobs in _alike(wanted).items():
                    self._answer(corpus, k, jobs)
        finally:
            self._running = False

    def _wait(self) -> bool:
        """Until there is something to do; False once closing and there is nothing."""
        while True:
            with self._changed:
                something = bool(len(self._lanes) or self._errands)
                if something or self._closing:
                    return something
                self._asleep = True
            self._bell.acquire()

    def _take(self) -> list[Waiting]:
        with self._changed:
            batch = self._lanes.take()
            self.pace.take(len(batch), self._clock())
            return batch

    def _do_errands(self) -> None:
        if not self._errands:
            return
        with self._changed:
            errands, self._errands = self._errands, []
        for errand in errands:
            if not errand.done.set_running_or_notify_cancel():
                continue
            try:
                errand.done.set_result(errand.action())
            except Exception as error:  # whoever sent for it gets it, and the thread lives on
                errand.done.set_exception(error)

    def _wanted(self, batch: list[Waiting]) -> list[Waiting]:
        """Without those that nobody waits for any more, and those whose deadline will be over when the batch is done:
        they are dropped before they cost anything. Unless that were all: an estimate that is wrong must be mended."""
        taken_at, done_at = self.pace.busy_since, self.pace.done_at(len(batch))
        wanted, too_late = list[Waiting](), list[Waiting]()
        for job in batch:
            metrics.QUEUE_SECONDS.observe(taken_at - job.since)
            if job.is_left:
                self._loop.call_soon_threadsafe(self._give_up, job, float("-inf"))
            elif job.is_begun or done_at <= job.deadline:
                wanted.append(job)
            else:
                too_late.append(job)
        if not wanted and too_late and taken_at <= too_late[0].deadline:
            wanted.append(too_late.pop(0))
        for job in too_late:
            self._loop.call_soon_threadsafe(self._give_up, job, job.deadline)
        for job in wanted:
            for request in job.requests:
                request.begun = True
        return wanted

    def _answer(self, corpus: Corpus, k: int, jobs: list[Waiting]) -> None:
        self.pace.busy_since = self._clock()
        try:
            hits = _search(corpus, k, jobs)
        except Exception as error:  # each caller gets it, and the thread lives on
            if not isinstance(error, SearcherError):
                log.error("search failed", corpus=corpus.name, queries=len(jobs), exc_info=error)
            self._tell(jobs, [error] * len(jobs))
        else:
            _searched(corpus.name).inc(len(jobs))
            self._proven_at = self._clock()
            self._tell(jobs, hits)
            if self.shared_cache is not None:
                self._loop.call_soon_threadsafe(self._share, jobs, hits)

    def _tell(self, jobs: list[Waiting], outcomes: Sequence[Hits | Exception]) -> None:
        self.pace.learn(len(jobs), self._clock())  # before the callers, lest they find themselves still waiting
        metrics.BATCH_QUERIES.observe(len(jobs))
        self._loop.call_soon_threadsafe(self._settle, jobs, outcomes)


def _count(counter: Counter, number: int) -> None:
    """Adding nothing costs a query as much as adding something."""
    if number:
        counter.inc(number)


@cache
def _searched(corpus: str) -> Counter:
    return metrics.SEARCHED.labels(corpus)


def _alike(jobs: list[Waiting]) -> dict[tuple[Corpus, int], list[Waiting]]:
    """One search per corpus and k: an approximate index finds other passages when it looks deeper, and nobody's answer
    depends on who else asks."""
    groups: dict[tuple[Corpus, int], list[Waiting]] = {}
    for job in jobs:
        groups.setdefault((job.corpus, job.k), []).append(job)
    return groups


def _search(corpus: Corpus, k: int, jobs: list[Waiting]) -> list[Hits]:
    rows_QK, scores_QK = corpus.index.search([job.query for job in jobs], k)
    return [_hits(rows_K, scores_K) for rows_K, scores_K in zip(rows_QK.tolist(), scores_QK.tolist(), strict=True)]


def _hits(rows_K: list[int], scores_K: list[float]) -> Hits:
    """What was found: rows of a corpus smaller than k end with NOTHING."""
    found = len(rows_K) if NOTHING not in rows_K else rows_K.index(NOTHING)
    return Hits(tuple(rows_K[:found]), tuple(scores_K[:found]))
