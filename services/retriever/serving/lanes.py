"""Who is next: waiting queries in two lanes, and how long one that comes now would wait. No threads, no clock here.

    interactive   queries of small requests        taken first, up to a whole batch
    bulk          queries of large requests        a slice of every batch, so neither lane starves the other

While nobody is in a hurry the bulk lane gets whole batches: a large batch costs less per query.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from services.retriever.serving.cache import Hits, Key
from services.retriever.serving.library import Corpus

_HURRY_BATCHES = 8
"""So many batches after the last interactive query, another one is no longer expected."""


@dataclass(eq=False)
class Request:
    """What the queries of one call have in common."""

    deadline: float
    """On the engine's clock."""
    since: float
    bulk: bool = False
    patient: bool = False
    """Its deadline is for its search to begin, not to end."""
    begun: bool = False
    """Some of its queries were searched already, so the rest is not given up while its caller waits."""
    expired: bool = False
    """Its deadline came before its hits, and its caller was told."""


@dataclass(eq=False, slots=True)
class Waiting:
    """One query, and everybody who asked for it while it was not yet answered."""

    key: Key
    query: str
    k: int
    corpus: Corpus
    requests: list[Request]
    callers: list["asyncio.Future[Hits]"] = field(default_factory=list)
    taken: bool = False

    @property
    def since(self) -> float:
        return self.requests[0].since

    @property
    def deadline(self) -> float:
        """The latest of its callers'."""
        return max(request.deadline for request in self.requests)

    def is_in_time(self, *, taken_at: float, done_at: float) -> bool:
        """Of a batch that is taken and done then, for one of its callers at least."""
        return any(
            request.begun or (taken_at if request.patient else done_at) <= request.deadline for request in self.requests
        )

    @property
    def is_left(self) -> bool:
        """Nobody waits for it any more."""
        return all(caller.done() for caller in self.callers)


class Lanes:
    """Not thread-safe; the engine holds its lock."""

    def __init__(self, *, max_batch: int, bulk_slice: int) -> None:
        self.max_batch, self.bulk_slice = max_batch, min(bulk_slice, max_batch)
        self._interactive: deque[Waiting] = deque()
        self._bulk: deque[Waiting] = deque()
        self._batches_since_hurry = _HURRY_BATCHES

    def __len__(self) -> int:
        return len(self._interactive) + len(self._bulk)

    def add(self, jobs: list[Waiting], *, bulk: bool) -> None:
        (self._bulk if bulk else self._interactive).extend(jobs)

    def promote(self, job: Waiting) -> None:
        """Somebody in a hurry wants it too. It stays in its old lane as well, and is passed over there."""
        self._interactive.append(job)

    def take(self) -> list[Waiting]:
        """The next batch. Whoever comes while a large request is searched waits for a slice of it, not for all."""
        self._batches_since_hurry = 0 if self._interactive else self._batches_since_hurry + 1
        if not self._bulk:
            return list(_next(self._interactive, self.max_batch))
        share = self.bulk_slice if self._batches_since_hurry < _HURRY_BATCHES else self.max_batch
        batch = list(_next(self._interactive, self.max_batch - min(self.bulk_slice, len(self._bulk))))
        batch += _next(self._bulk, min(share, self.max_batch - len(batch)))
        batch += _next(self._interactive, self.max_batch - len(batch))
        return batch

    def ahead(self, *, bulk: bool) -> int:
        """Queries that are searched before one that comes now."""
        if bulk:
            return len(self)
        # While the interactive lane empties, the bulk lane takes its slice of each batch.
        batches = -(-len(self._interactive) // max(1, self.max_batch - self.bulk_slice))
        return len(self._interactive) + min(len(self._bulk), batches * self.bulk_slice)


def _next(lane: deque[Waiting], limit: int) -> Iterator[Waiting]:
    while lane and limit > 0:
        job = lane.popleft()
        if not job.taken:
            job.taken = True
            limit -= 1
            yield job
