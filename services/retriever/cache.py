"""The last answers, by (corpus, query, k). Samples of one group and later epochs ask the same again and again."""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.retriever import metrics

Key = tuple[str, str, int]
"""corpus, query, k."""


@dataclass(frozen=True, eq=False)
class Hits:
    """What one query found: rows of the corpus and their scores, best first. Empty: nothing matches."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


class HitCache:
    """Least recently used answers are forgotten first. Rows and scores only, never texts: an entry is small."""

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self._entries: OrderedDict[Key, Hits] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Hits | None:
        hits = self._entries.get(key)
        if hits is not None:
            self._entries.move_to_end(key)
        metrics.CACHE_LOOKUPS.labels("miss" if hits is None else "hit").inc()
        return hits

    def put(self, key: Key, hits: Hits) -> None:
        self._entries[key] = hits
        self._entries.move_to_end(key)
        while len(self._entries) > self.max_entries:
            self._entries.popitem(last=False)
