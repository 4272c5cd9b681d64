"""Answers given before, by (index, encoder, query, k): in this process, and in a Redis that replicas share.

Samples of one group and later epochs ask the same again and again. Rows and scores are kept, never texts: an entry is a
few hundred bytes. A Redis that is slow, full or gone costs a few milliseconds now and then, never an answer.
"""

import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol, Self

import structlog

from services.retriever import metrics

log = structlog.get_logger()

Key = bytes
"""16 bytes, see `cache_key`."""


_SEAL_BYTES = 8


@dataclass(frozen=True, slots=True)
class Hits:
    """What one query found: rows of the corpus and their scores, best first. Empty: nothing matches."""

    rows: tuple[int, ...]
    scores: tuple[float, ...]

    def pack(self) -> bytes:
        return struct.pack(f"<{len(self.rows)}q{len(self.scores)}f", *self.rows, *self.scores)

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Raises ValueError for what `pack` did not write."""
        k, rest = divmod(len(packed), 12)
        if rest:
            raise ValueError(f"{len(packed)} bytes are no rows and scores")
        numbers = struct.unpack(f"<{k}q{k}f", packed)
        return cls(numbers[:k], numbers[k:])


def cache_key(identity: bytes, query: str, k: int) -> Key:
    """`identity` names the index and its encoder: another build, another answer."""
    return blake2b(b"%b\0%d\0%b" % (identity, k, query.encode()), digest_size=16).digest()


def _sealed(key: Key, packed: bytes) -> bytes:
    """Anybody may write to a shared Redis, and a wrong row would be a wrong passage."""
    return blake2b(packed, digest_size=_SEAL_BYTES, key=key).digest() + packed


def _opened(key: Key, sealed: object) -> bytes:
    """Raises ValueError for what `_sealed` did not make of this key's hits."""
    if not isinstance(sealed, bytes) or _sealed(key, sealed[_SEAL_BYTES:]) != sealed:
        raise ValueError("not what was written under this key")
    return sealed[_SEAL_BYTES:]


class HitCache:
    """Least recently used answers are forgotten first."""

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self._entries: OrderedDict[Key, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Hits | None:
        packed = self._entries.get(key)
        if packed is None:
            return None
        self._entries.move_to_end(key)
        return Hits.unpack(packed)

    def put(self, key: Key, hits: Hits) -> None:
        if not self.max_entries:
            return
        self._entries[key] = hits.pack()
        self._entries.move_to_end(key)
        if len(self._entries) > self.max_entries:
            self._entries.popitem(last=False)


class SharedCache(Protocol):
    """The seam to Redis. Neither method raises or takes long: whoever has no cache searches."""

    async def get(self, keys: Sequence[Key]) -> Mapping[Key, Hits]: ...

    async def put(self, entries: Mapping[Key, Hits]) -> None: ...

    async def close(self) -> None: ...


class RedisCache:
    """After a failure Redis is left alone for a moment, so that an outage is not paid for by every request."""

    PREFIX = b"searcher:hits:"

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 0.005,
        lifetime_seconds: int = 7 * 24 * 3600,
        rest_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        self.lifetime_seconds, self.rest_seconds = lifetime_seconds, rest_seconds
        self._clock, self._rests_until = clock, float("-inf")
        self._redis = Redis.from_url(
            url,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=10 * timeout_seconds,
            retry=Retry(NoBackoff(), 0),
            max_connections=128,
        )

    async def get(self, keys: Sequence[Key]) -> Mapping[Key, Hits]:
        packed = await self._call("get", lambda: self._redis.mget([self.PREFIX + key for key in keys]))
        found: dict[Key, Hits] = {}
        for key, value in zip(keys, packed if isinstance(packed, list) else (), strict=False):
            if value is not None:
                try:
                    found[key] = Hits.unpack(_opened(key, value))
                except ValueError:
                    metrics.SHARED_CACHE.labels("garbled").inc()
        return found

    async def put(self, entries: Mapping[Key, Hits]) -> None:
        def write() -> Any:
            pipeline = self._redis.pipeline(transaction=False)
            for key, hits in entries.items():
                pipeline.set(self.PREFIX + key, _sealed(key, hits.pack()), ex=self.lifetime_seconds)
            return pipeline.execute()

        await self._call("put", write)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _call(self, what: str, action: Callable[[], Any]) -> Any:
        if self._clock() < self._rests_until:
            metrics.SHARED_CACHE.labels("resting").inc()
            return None
        try:
            answer = await action()
        except Exception as error:  # its client raises ValueError and more for an answer that is not Redis'
            self._rests_until = self._clock() + self.rest_seconds
            metrics.SHARED_CACHE.labels("failed").inc()
            await self._redis.connection_pool.disconnect(inuse_connections=False)  # half an answer may lie in one
            log.warning("shared cache failed", action=what, reason=f"{type(error).__name__} {error}".rstrip())
            return None
        metrics.SHARED_CACHE.labels(what).inc()
        return answer
