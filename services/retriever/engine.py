"""Queries -> hits, many callers at a time. No HTTP here, and no passages: hits are rows of a corpus.

    callers (event loop)  --waiting queries-->  engine thread  --hits-->  callers

One thread owns encoders and indexes. It takes whatever waits the moment it is free, so a batch is one query when it is
quiet and grows by itself under load; nobody ever waits for a batch to fill.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from searcher.contracts.errors import NotFound, NotReady, Overloaded
from services.retriever import metrics
from services.retriever.cache import HitCache, Hits
from services.retriever.index import NOTHING, Rows, Scores
from services.retriever.library import Corpus

log = structlog.get_logger()

_COST_SMOOTHING = 0.1
"""Weight of the newest batch in the estimated cost of a query."""


@dataclass(eq=False)
class _Request:
    """What the queries of one call have in common."""

    corpus: Corpus
    k: int
    since: float
    begun: bool = False
    """Some of its queries were searched already, so the rest is not given up, however long it takes."""


@dataclass(eq=False)
class _Waiting:
    """One query of one caller."""

    query: str
    request: _Request
    answer: asyncio.Future[Hits]


class Engine:
    """Start it in the event loop whose callers it serves."""

    def __init__(
        self,
        corpora: Mapping[str, Corpus],
        *,
        max_batch: int,
        queue_seconds: float,
        cache_entries: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.corpora, self.max_batch, self.queue_seconds = corpora, max_batch, queue_seconds
        self.cache = HitCache(cache_entries)
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._in_hand, self._busy_since = 0, 0.0
        self._seconds_per_query = 0.0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="retriever-engine", daemon=True)

    # -- in the event loop --------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """Answer what waits, then stop and close the corpora."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)
        for corpus in self.corpora.values():
            corpus.close()

    def check(self) -> None:
        """Raises NotReady if nobody would answer."""
        if self._closing or not self._thread.is_alive():
            raise NotReady("the search engine is not running")

    def corpus(self, name: str) -> Corpus:
        """Raises NotFound that lists what there is."""
        if name not in self.corpora:
            raise NotFound(f"corpus: {name!r} is not one of {', '.join(sorted(self.corpora))}")
        return self.corpora[name]

    async def search(self, queries: Sequence[str], *, corpus: Corpus, k: int) -> list[Hits]:
        """Hits per query, in the order asked. Raises Overloaded if they would wait too long. Cancel it to leave."""
        known = {query: self.cache.get((corpus.name, query, k)) for query in dict.fromkeys(queries)}
        found = {query: hits for query, hits in known.items() if hits is not None}
        missing = [query for query in known if query not in found]
        for query, hits in zip(missing, await self._ask(missing, corpus, k), strict=True):
            found[query] = hits
            self.cache.put((corpus.name, query, k), hits)
        return [found[query] for query in queries]

    async def _ask(self, queries: list[str], corpus: Corpus, k: int) -> list[Hits]:
        if not queries:
            return []
        self.check()
        self._refuse_if_overloaded(len(queries))
        request = _Request(corpus, k, since=self._clock())
        jobs = [_Waiting(query, request, self._loop.create_future()) for query in queries]
        with self._changed:
            self._waiting.extend(jobs)
            self._changed.notify()
        return await asyncio.gather(*(job.answer for job in jobs))

    def _refuse_if_overloaded(self, num_queries: int) -> None:
        """What is ahead of a query decides, not its own size: any request is served when nobody else waits."""
        ahead, seconds = self._estimate_wait()
        if seconds > self.queue_seconds:
            metrics.REJECTED.labels("overloaded").inc(num_queries)
            raise Overloaded(f"{ahead} queries wait, about {seconds:.1f} s", retry_after_seconds=seconds)

    def _estimate_wait(self) -> tuple[int, float]:
        """Queries ahead of one that arrives now, and seconds until it is its turn."""
        ahead = len(self._waiting) + self._in_hand
        busy_seconds = self._clock() - self._busy_since if self._in_hand else 0.0
        seconds = max(ahead * self._seconds_per_query, busy_seconds)
        metrics.WAITING.set(ahead)
        metrics.WAIT_ESTIMATE.set(seconds)
        return ahead, seconds

    # -- in the engine's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while batch := self._take():
            wanted = [job for job in batch if self._is_wanted(job)]
            for corpus, jobs in _by_corpus(wanted):
                self._answer(corpus, jobs)

    def _take(self) -> list[_Waiting]:
        """Everything that waits now, up to `max_batch`; [] once closing and nothing waits."""
        with self._changed:
            self._in_hand = 0
            self._estimate_wait()
            self._changed.wait_for(lambda: self._waiting or self._closing)
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.max_batch))]
            self._in_hand, self._busy_since = len(batch), self._clock()
            return batch

    def _is_wanted(self, job: _Waiting) -> bool:
        waited = self._busy_since - job.request.since
        metrics.STAGE_SECONDS.labels("queue").observe(waited)
        if job.answer.cancelled():
            metrics.REJECTED.labels("cancelled").inc()
            return False
        if waited > self.queue_seconds and not job.request.begun:
            metrics.REJECTED.labels("expired").inc()
            self._settle([job], [Overloaded(f"waited {waited:.1f} s", retry_after_seconds=self._seconds_per_query)])
            return False
        job.request.begun = True
        return True

    def _answer(self, corpus: Corpus, jobs: list[_Waiting]) -> None:
        started = self._clock()
        try:
            outcomes: Sequence[Hits | Exception] = _search(corpus, jobs)
        except Exception as error:  # each caller gets it, and the thread lives on
            log.error("search failed", corpus=corpus.name, queries=len(jobs), exc_info=error)
            outcomes = [error] * len(jobs)
        self._settle(jobs, outcomes)
        cost = (self._clock() - started) / len(jobs)
        self._seconds_per_query += _COST_SMOOTHING * (cost - self._seconds_per_query)
        metrics.BATCH_QUERIES.observe(len(jobs))

    def _settle(self, jobs: Sequence[_Waiting], outcomes: Sequence[Hits | Exception]) -> None:
        self._loop.call_soon_threadsafe(_hand_over, jobs, outcomes)


def _by_corpus(jobs: list[_Waiting]) -> list[tuple[Corpus, list[_Waiting]]]:
    groups: dict[Corpus, list[_Waiting]] = {}
    for job in jobs:
        groups.setdefault(job.request.corpus, []).append(job)
    return list(groups.items())


def _search(corpus: Corpus, jobs: list[_Waiting]) -> list[Hits]:
    """One search for the distinct queries, as deep as the deepest asks; each job gets its own k of it."""
    position = {query: q for q, query in enumerate(dict.fromkeys(job.query for job in jobs))}
    rows_QK, scores_QK = corpus.index.search(list(position), max(job.request.k for job in jobs))
    metrics.SEARCHED.labels(corpus.name).inc(len(position))
    metrics.COALESCED.inc(len(jobs) - len(position))
    return [_hits(rows_QK[position[job.query]], scores_QK[position[job.query]], job.request.k) for job in jobs]


def _hits(rows_K: Rows, scores_K: Scores, k: int) -> Hits:
    """The first k that were found. Copied, so that a cached answer does not keep its whole batch alive."""
    found = int((rows_K[:k] != NOTHING).sum())
    return Hits(rows_K[:found].copy(), scores_K[:found].copy())


def _hand_over(jobs: Sequence[_Waiting], outcomes: Sequence[Hits | Exception]) -> None:
    for job, outcome in zip(jobs, outcomes, strict=True):
        if job.answer.done():  # its caller left while it was searched
            continue
        if isinstance(outcome, Exception):
            job.answer.set_exception(outcome)
        else:
            job.answer.set_result(outcome)
