"""The one thread that owns encoders and indexes: it takes what waits the moment it is free, and searches."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import structlog
from prometheus_client import Counter

from searcher.contracts.errors import SearcherError
from services.retriever import metrics
from services.retriever.index.protocol import NOTHING
from services.retriever.serving.cache import Hits
from services.retriever.serving.lanes import Lanes, Waiting
from services.retriever.serving.library import Corpus
from services.retriever.serving.pace import Pace

log = structlog.get_logger()


class Hear(Protocol):
    """What the thread tells of queries, from within. It waits meanwhile, so whoever hears must not take long."""

    def answered(self, jobs: Sequence[Waiting], outcomes: Sequence[Hits | Exception]) -> None:
        """They were searched together: all hits, or one error for all."""
        ...

    def given_up(self, job: Waiting, deadline: float) -> None:
        """Nobody waits for it, or it would not be answered by `deadline`."""
        ...


@dataclass
class _Errand:
    """Something else that must happen in the thread, between two batches."""

    action: Callable[[], object]
    done: "Future[object]"


class SearchThread:
    """Give it work from one other thread only."""

    def __init__(self, lanes: Lanes, hear: Hear, *, clock: Callable[[], float]) -> None:
        self.pace = Pace(lanes.max_batch)
        self.proven_at = float("-inf")
        """When a search last succeeded."""
        self._lanes, self._hear, self._clock = lanes, hear, clock
        self._errands: list[_Errand] = []
        self._running = self._closing = False
        self._changed = threading.Lock()
        """Of the lanes, the errands and the end."""
        self._bell, self._asleep = threading.Lock(), False
        self._bell.acquire()
        self._thread = threading.Thread(target=self._run, name="retriever-engine", daemon=True)

    # -- from outside -------------------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        return self._running and not self._closing

    def start(self) -> None:
        self._running = True
        self._thread.start()

    def close(self) -> None:
        """It ends when it has answered what waits: `join` it."""
        with self._changed:
            self._closing = True
            self._wake()

    def join(self) -> None:
        self._thread.join()

    def add(self, jobs: list[Waiting], *, bulk: bool) -> None:
        with self._changed:
            self._lanes.add(jobs, bulk=bulk)
            self._wake()

    def promote(self, job: Waiting) -> None:
        """Somebody in a hurry wants it too."""
        with self._changed:
            self._lanes.promote(job)

    def send(self, action: Callable[[], object]) -> "Future[object]":
        """Do it before the next batch."""
        done: Future[object] = Future()
        with self._changed:
            self._errands.append(_Errand(action, done))
            self._wake()
        return done

    def estimate_wait(self, *, bulk: bool) -> tuple[int, float]:
        """Queries ahead of one that arrives now, and seconds until it is its turn."""
        ahead = self._lanes.ahead(bulk=bulk)
        return ahead + self.pace.in_hand, self.pace.seconds_until(ahead, self._clock())

    def _wake(self) -> None:
        """Ring, if it sleeps. Called with the lock held. A bare lock is the bell: waking is on every quiet query's way,
        and a threading.Condition takes twice as long."""
        if self._asleep:
            self._asleep = False
            self._bell.release()

    # -- inside -------------------------------------------------------------------------------------------------------

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

    def _take(self) -> list[Waiting]:
        with self._changed:
            batch = self._lanes.take()
            self.pace.take(len(batch), self._clock())
            return batch

    def _wanted(self, batch: list[Waiting]) -> list[Waiting]:
        """Without those that nobody waits for any more, and those whose deadline will be over when the batch is done:
        they are dropped before they cost anything. Unless that were all: an estimate that is wrong must be mended."""
        taken_at, done_at = self.pace.busy_since, self.pace.done_at(len(batch))
        wanted, too_late = list[Waiting](), list[Waiting]()
        for job in batch:
            metrics.QUEUE_SECONDS.observe(taken_at - job.since)
            if job.is_left:
                self._hear.given_up(job, float("-inf"))
            elif job.is_in_time(taken_at=taken_at, done_at=done_at):
                wanted.append(job)
            else:
                too_late.append(job)
        if not wanted and too_late and taken_at <= too_late[0].deadline:
            wanted.append(too_late.pop(0))
        for job in too_late:
            self._hear.given_up(job, job.deadline)
        for job in wanted:
            for request in job.requests:
                request.begun = True
        return wanted

    def _answer(self, corpus: Corpus, k: int, jobs: list[Waiting]) -> None:
        self.pace.busy_since = self._clock()
        outcomes: Sequence[Hits | Exception]
        try:
            outcomes = _search(corpus, k, jobs)
        except Exception as error:  # each caller gets it, and the thread lives on
            if not isinstance(error, SearcherError):
                log.error("search failed", corpus=corpus.name, queries=len(jobs), exc_info=error)
            outcomes = [error] * len(jobs)
        else:
            self.proven_at = self._clock()
        self.pace.learn(len(jobs), self._clock())  # before the callers hear, lest they find themselves still waiting
        self._hear.answered(jobs, outcomes)  # and before anything is counted, for which nobody should wait
        metrics.BATCH_QUERIES.observe(len(jobs))
        if not isinstance(outcomes[0], Exception):
            _searched(corpus.name).inc(len(jobs))


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
