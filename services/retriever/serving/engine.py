"""Queries -> hits, many callers at a time. No HTTP here, and no passages: hits are rows of a corpus.

    callers  --cache, flights-->  lanes  --search thread-->  hits  -->  callers

All of it happens in the event loop, but for searching (`thread`): a batch is one query when it is quiet and grows by
itself under load; nobody ever waits for a batch to fill. A query that somebody asked already and that is not yet
answered is not asked again: it is one flight with several callers.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, cast

import structlog
from prometheus_client import Counter

from searcher.contracts.errors import NotReady, Overloaded
from services.retriever import metrics
from services.retriever.serving.cache import HitCache, Hits, Key, SharedCache, cache_key
from services.retriever.serving.lanes import Lanes, Request, Waiting
from services.retriever.serving.library import Corpus
from services.retriever.serving.pace import Pace
from services.retriever.serving.thread import SearchThread

log = structlog.get_logger()
T = TypeVar("T")

_PART_OF_DEADLINE = 0.8
"""Hits must be there this early: batches vary, and the answer is still to be written and to be read."""
_PROOF_SECONDS = 10.0
"""A search that succeeded proves for so long that the engine works."""
_STUCK_SECONDS = 60.0
"""No batch takes so long; a search that does not come back will not."""

_HITS, _MISSES, _COALESCED = (metrics.CACHE_LOOKUPS.labels(outcome) for outcome in ("hit", "miss", "coalesced"))


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
        self._flights: dict[Key, Waiting] = {}
        self._background: set[asyncio.Task[None]] = set()
        """Reading and writing the shared cache."""
        self._thread = SearchThread(Lanes(max_batch=max_batch, bulk_slice=bulk_slice), self, clock=clock)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        metrics.WAITING.set_function(lambda: self._thread.estimate_wait(bulk=False)[0])
        metrics.WAIT_ESTIMATE.set_function(lambda: self._thread.estimate_wait(bulk=False)[1])
        self._thread.start()

    @property
    def pace(self) -> Pace:
        return self._thread.pace

    async def close(self) -> None:
        """Answer what waits, then stop."""
        await asyncio.gather(*self._background)
        self._thread.close()
        await asyncio.to_thread(self._thread.join)
        await asyncio.sleep(0)  # what the thread called for last
        await asyncio.gather(*self._background)
        if self.shared_cache is not None:
            await self.shared_cache.close()

    def check(self) -> None:
        """Raises NotReady if nobody would answer."""
        if not self._thread.is_running:
            raise NotReady("the search engine is not running")
        if (seconds := self.pace.busy_seconds(self._clock())) > _STUCK_SECONDS:
            raise NotReady(f"one search has been running for {seconds:.0f} s")

    @property
    def is_proven(self) -> bool:
        """A search succeeded a moment ago."""
        return self._clock() - self._thread.proven_at < _PROOF_SECONDS

    def prove(self) -> None:
        """The golden query succeeded."""
        self._thread.proven_at = self._clock()

    async def run(self, action: Callable[[], T]) -> T:
        """Do it in the engine's thread, before the next batch. For what touches encoders and indexes."""
        self.check()
        return cast("T", await asyncio.wrap_future(self._thread.send(action)))

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
        caller waits for its turn until then, and once its search has begun, to the end. Cancel it to leave.
        """
        now = self._clock()
        request = Request(deadline=now + deadline_seconds, since=now, patient=patient)
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
            found |= await self._ask(missing, corpus, request)
        return [found[key] for key in keys]

    async def _ask(self, missing: dict[Key, tuple[str, int]], corpus: Corpus, request: Request) -> dict[Key, Hits]:
        self.check()
        request.bulk = len(missing) > self.interactive_queries
        if not request.patient:
            self._admit(len(missing), request)
        callers, new = self._board(missing, corpus, request)
        if self.shared_cache is None:
            self._enqueue(new, request)
        elif new:
            self._in_background(self._look_up(new, request, self.shared_cache))
        # Others are at work now: what is done here meanwhile costs the caller nothing.
        remaining = request.deadline - self._clock()
        expiry = self._loop.call_later(max(0.0, remaining), self._expire, request, callers)
        _count(_MISSES, len(new))
        _count(_COALESCED, len(missing) - len(new))
        try:
            if len(callers) == 1:
                ((key, caller),) = callers.items()
                return {key: await caller}
            return dict(zip(callers, await asyncio.gather(*callers.values()), strict=True))
        finally:
            expiry.cancel()
            for caller in callers.values():
                caller.cancel()

    def _expire(self, request: Request, callers: dict[Key, "asyncio.Future[Hits]"]) -> None:
        late = [caller for caller in callers.values() if not caller.done()]
        if not late or (request.patient and request.begun):
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
                    self._thread.promote(flight)
            callers[key] = self._loop.create_future()
            flight.callers.append(callers[key])
        return callers, new

    async def _look_up(self, new: list[Waiting], request: Request, shared_cache: SharedCache) -> None:
        """What a replica found already need not be searched."""
        known: Mapping[Key, Hits] = {}
        try:
            known = await shared_cache.get([job.key for job in new])
        except Exception:  # a flight that is never searched would hold all later askers of its query
            log.exception("shared cache failed")
        self._settle([job for job in new if job.key in known], [known[job.key] for job in new if job.key in known])
        self._enqueue([job for job in new if job.key not in known], request)

    def _enqueue(self, jobs: list[Waiting], request: Request) -> None:
        if jobs:
            self._thread.add(jobs, bulk=request.bulk)

    def _admit(self, num_queries: int, request: Request) -> None:
        """When nobody else waits, any request is served, however short its deadline: that mends a wrong estimate."""
        ahead, seconds = self._thread.estimate_wait(bulk=request.bulk)
        remaining = request.deadline - self._clock()
        if ahead and seconds + self.pace.seconds_for(num_queries) > _PART_OF_DEADLINE * remaining:
            metrics.REJECTED.labels("overloaded").inc(num_queries)
            raise Overloaded(f"{ahead} queries wait, about {seconds:.1f} s", retry_after_seconds=seconds)

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

    def _found(self, jobs: Sequence[Waiting], outcomes: Sequence[Hits | Exception]) -> None:
        self._settle(jobs, outcomes)
        if self.shared_cache is None:
            return
        entries = {job.key: hits for job, hits in zip(jobs, outcomes, strict=True) if isinstance(hits, Hits)}
        if entries:
            self._in_background(self.shared_cache.put(entries))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- told by the search thread ------------------------------------------------------------------------------------

    def answered(self, jobs: Sequence[Waiting], outcomes: Sequence[Hits | Exception]) -> None:
        self._loop.call_soon_threadsafe(self._found, jobs, outcomes)

    def given_up(self, job: Waiting, deadline: float) -> None:
        self._loop.call_soon_threadsafe(self._give_up, job, deadline)


def _count(counter: Counter, number: int) -> None:
    """Adding nothing costs a query as much as adding something."""
    if number:
        counter.inc(number)
