import asyncio
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.retriever import metrics
from services.retriever.serving.cache import HitCache, Hits, RedisCache, cache_key

FOUND = Hits((3, 2**40), (1.5, -0.25))


def key(query: str, k: int = 3, identity: bytes = b"build") -> bytes:
    return cache_key(identity, query, k)


def test_what_is_packed_comes_out_alike() -> None:
    assert Hits.unpack(FOUND.pack()) == FOUND
    assert Hits.unpack(Hits((), ()).pack()) == Hits((), ())


def test_other_bytes_are_no_hits() -> None:
    with pytest.raises(ValueError, match="13 bytes"):
        Hits.unpack(b"x" * 13)


def test_the_answer_not_used_for_longest_is_forgotten_first() -> None:
    cache = HitCache(2)
    cache.put(key("first"), FOUND)
    cache.put(key("second"), FOUND)
    cache.get(key("first"))

    cache.put(key("third"), FOUND)

    assert cache.get(key("second")) is None
    assert cache.get(key("first")) == FOUND


def test_another_k_another_build_another_query_are_other_answers() -> None:
    keys = {key("q"), key("q", k=5), key("q", identity=b"other build"), key("r")}

    assert len(keys) == 4


@given(max_entries=st.integers(0, 4), queries=st.lists(st.sampled_from("abcdefgh"), max_size=40))
def test_a_cache_never_grows_beyond_its_limit(max_entries: int, queries: list[str]) -> None:
    cache = HitCache(max_entries)

    for query in queries:
        cache.put(key(query), FOUND)

    assert len(cache) == min(max_entries, len(set(queries)))


def calls(outcome: str) -> float:
    return metrics.SHARED_CACHE.labels(outcome)._value.get()


@pytest.mark.anyio
async def test_replicas_share_what_they_found(redis_url: str) -> None:
    # Not the product's 5 ms: a busy machine is not a failure.
    one, other = RedisCache(redis_url, timeout_seconds=10), RedisCache(redis_url, timeout_seconds=10)
    await one.put({key("a"): FOUND, key("b"): Hits((), ())})

    assert await other.get([key("a"), key("b"), key("c")]) == {key("a"): FOUND, key("b"): Hits((), ())}
    await one.close()
    await other.close()


@pytest.mark.anyio
async def test_without_redis_there_are_no_hits_and_no_errors_and_nobody_asks_it_for_a_while() -> None:
    now = 0.0
    failed, resting = calls("failed"), calls("resting")
    cache = RedisCache("redis://127.0.0.1:1/0", rest_seconds=1.0, clock=lambda: now)

    assert await cache.get([key("a")]) == {}
    await cache.put({key("a"): FOUND})
    assert (calls("failed") - failed, calls("resting") - resting) == (1, 1)

    now = 1.5
    assert await cache.get([key("a")]) == {}
    assert (calls("failed") - failed, calls("resting") - resting) == (2, 1)
    await cache.close()


@pytest.mark.parametrize("value", [b"not hits", b"hello world!", struct.pack("<qf", 5, 1.0)])
@pytest.mark.anyio
async def test_an_entry_that_is_not_ours_is_no_hit(redis_url: str, value: bytes) -> None:
    cache = RedisCache(redis_url, timeout_seconds=10)
    await cache._redis.set(RedisCache.PREFIX + key("a"), value)

    assert await cache.get([key("a")]) == {}
    await cache.close()


@pytest.mark.anyio
async def test_another_keys_entry_is_no_hit(redis_url: str) -> None:
    cache = RedisCache(redis_url, timeout_seconds=10)
    await cache.put({key("a"): FOUND})
    await cache._redis.copy(RedisCache.PREFIX + key("a"), RedisCache.PREFIX + key("b"))

    assert await cache.get([key("b")]) == {}
    await cache.close()


@pytest.mark.parametrize("answer", [b":5\r\n", b"+OK\r\n", b"*zzz\r\n", b"*1\r\n:7\r\n"])
@pytest.mark.anyio
async def test_what_redis_would_never_answer_costs_no_answer(answer: bytes) -> None:
    hung_up = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(4096):
            writer.write(answer if b"MGET" in request else b"+OK\r\n" * request.count(b"*"))
            await writer.drain()
        writer.close()
        await writer.wait_closed()
        hung_up.set()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    cache = RedisCache(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", timeout_seconds=5)

    assert await cache.get([key("a")]) == {}

    await cache.close()
    await asyncio.wait_for(hung_up.wait(), 5)
    server.close()
