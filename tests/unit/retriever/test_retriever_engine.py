"""The engine over an index of one's own making: it records what it is asked and waits until it is let go."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from searcher.contracts.errors import NotReady, Overloaded
from services.retriever.building.build import build_index
from services.retriever.index.protocol import NOTHING, Rows, Scores
from services.retriever.serving.cache import Hits, Key
from services.retriever.serving.engine import Engine
from services.retriever.serving.library import Corpus, Library

pytestmark = pytest.mark.anyio


class ToyIndex:
    """A query `n…` finds the rows n, n + 1, …; the query `none` finds nothing; `broken` raises."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seconds_per_search = 0.0
        self.batches: list[list[str]] = []
        self.began = threading.Semaphore(0)
        self.let_go = threading.Event()

    def search(self, queries: Sequence[str], k: int) -> tuple[Rows, Scores]:
        self.batches.append(list(queries))
        self.began.release()
        assert self.let_go.wait(timeout=30)
        self.now += self.seconds_per_search
        if "broken" in queries:
            raise OSError("a page of the index could not be read")
        starts = [NOTHING if query == "none" else int(query.split()[0]) for query in queries]
        rows_QK = np.array([[NOTHING if start < 0 else start + i for i in range(k)] for start in starts])
        return rows_QK, rows_QK.astype(np.float32)


@pytest.fixture
def toy() -> ToyIndex:
    return ToyIndex()


@pytest.fixture
def corpus(tmp_path: Path, write_corpus: Callable[..., Path], toy: ToyIndex) -> Corpus:
    build_index(write_corpus(), tmp_path / "index", kind="bm25")
    return replace(Library().open(tmp_path / "index", "world"), index=toy)


def engine_of(toy: ToyIndex, **settings: object) -> Engine:
    """An engine that lives in the toy's time."""
    engine = Engine(**{"cache_entries": 100, "clock": lambda: toy.now, **settings})  # type: ignore[arg-type]
    engine.start()
    return engine


@pytest.fixture
async def engine(toy: ToyIndex) -> AsyncIterator[Engine]:
    engine = engine_of(toy)
    yield engine
    toy.let_go.set()
    await engine.close()


def ask(
    engine: Engine, corpus: Corpus, *queries: str, k: int = 1, seconds: float = 60.0, patient: bool = False
) -> "asyncio.Task[list[list[int]]]":
    """Rows per query, asked in one request."""

    async def rows() -> list[list[int]]:
        found = await engine.search(
            queries, corpus=corpus, k_Q=[k] * len(queries), deadline_seconds=seconds, patient=patient
        )
        return [list(hits.rows) for hits in found]

    return asyncio.create_task(rows())


async def begun(toy: ToyIndex) -> None:
    assert await asyncio.to_thread(toy.began.acquire, timeout=30)


async def test_hits_come_in_the_order_of_the_queries(engine: Engine, corpus: Corpus, toy: ToyIndex) -> None:
    toy.let_go.set()

    assert await ask(engine, corpus, "5", "none", "1", "5", k=2) == [[5, 6], [], [1, 2], [5, 6]]
    assert toy.batches == [["5", "none", "1"]]


async def test_what_arrives_while_the_engine_is_busy_becomes_one_batch(
    engine: Engine, corpus: Corpus, toy: ToyIndex
) -> None:
    first = ask(engine, corpus, "1")
    await begun(toy)
    others = [ask(engine, corpus, query) for query in ("2", "3", "4")]
    await asyncio.sleep(0)
    toy.let_go.set()

    assert await asyncio.gather(first, *others) == [[[1]], [[2]], [[3]], [[4]]]
    assert toy.batches == [["1"], ["2", "3", "4"]]


async def test_a_batch_has_a_limit(corpus: Corpus, toy: ToyIndex) -> None:
    engine = engine_of(toy, max_batch=2)
    toy.let_go.set()

    await ask(engine, corpus, "1", "2", "3", "4", "5")
    await engine.close()

    assert toy.batches == [["1", "2"], ["3", "4"], ["5"]]


async def test_a_large_request_does_not_starve_single_queries(corpus: Corpus, toy: ToyIndex) -> None:
    engine = engine_of(toy, max_batch=64, bulk_slice=16, interactive_queries=16)
    bulk = ask(engine, corpus, *(str(n) for n in range(1000, 1512)))
    await begun(toy)
    single = ask(engine, corpus, "7")
    await asyncio.sleep(0)
    toy.let_go.set()

    assert await single == [[7]]
    assert len(await bulk) == 512
    await engine.close()

    assert "7" in toy.batches[1]
    # While somebody may be in a hurry, the large request gets slices of 16; before and long after, whole batches.
    assert [len(batch) for batch in toy.batches] == [64, 17, *[16] * 7, 64, 64, 64, 64, 64]


async def test_single_queries_do_not_starve_a_large_request(corpus: Corpus, toy: ToyIndex) -> None:
    engine = engine_of(toy, max_batch=8, bulk_slice=2, interactive_queries=4)
    first = ask(engine, corpus, "0")
    await begun(toy)
    singles = [ask(engine, corpus, str(n)) for n in range(1, 21)]
    bulk = ask(engine, corpus, *(str(n) for n in range(100, 105)))
    await asyncio.sleep(0)
    toy.let_go.set()

    await asyncio.gather(first, *singles, bulk)
    await engine.close()

    assert [sum(int(query) >= 100 for query in batch) for batch in toy.batches] == [0, 2, 2, 1, 0]


async def test_identical_queries_of_many_requests_are_searched_once(
    engine: Engine, corpus: Corpus, toy: ToyIndex
) -> None:
    first = ask(engine, corpus, "1")
    await begun(toy)
    others = [ask(engine, corpus, "1"), ask(engine, corpus, "2"), ask(engine, corpus, "2")]
    await asyncio.sleep(0)
    toy.let_go.set()

    assert await asyncio.gather(first, *others) == [[[1]], [[1]], [[2]], [[2]]]
    assert toy.batches == [["1"], ["2"]]


async def test_a_query_in_a_hurry_takes_the_same_one_of_a_large_request_along(corpus: Corpus, toy: ToyIndex) -> None:
    engine = engine_of(toy, max_batch=2, bulk_slice=1, interactive_queries=1)
    first = ask(engine, corpus, "1")
    await begun(toy)
    bulk = ask(engine, corpus, *(str(n) for n in range(10, 20)))
    await asyncio.sleep(0)
    single = ask(engine, corpus, "19")
    await asyncio.sleep(0)
    toy.let_go.set()

    await asyncio.gather(first, bulk, single)
    await engine.close()

    assert toy.batches[1] == ["19", "10"]
    assert sum(batch.count("19") for batch in toy.batches) == 1


async def test_nobodys_answer_depends_on_who_else_asks(engine: Engine, corpus: Corpus, toy: ToyIndex) -> None:
    first = ask(engine, corpus, "1")
    await begun(toy)
    shallow, deep = ask(engine, corpus, "2", k=1), ask(engine, corpus, "2", k=3)
    await asyncio.sleep(0)
    toy.let_go.set()

    assert await asyncio.gather(first, shallow, deep) == [[[1]], [[2]], [[2, 3, 4]]]
    assert toy.batches == [["1"], ["2"], ["2"]]  # an approximate index looks elsewhere when it looks deeper


async def test_an_answer_given_once_is_not_searched_again(engine: Engine, corpus: Corpus, toy: ToyIndex) -> None:
    toy.let_go.set()

    assert await ask(engine, corpus, "1") == await ask(engine, corpus, "1") == [[1]]
    assert toy.batches == [["1"]]


async def test_another_build_of_the_index_has_answers_of_its_own(engine: Engine, corpus: Corpus, toy: ToyIndex) -> None:
    toy.let_go.set()

    await ask(engine, corpus, "1")
    await ask(engine, replace(corpus, sha256="another"), "1")

    assert toy.batches == [["1"], ["1"]]


async def test_a_query_whose_caller_left_is_not_searched(engine: Engine, corpus: Corpus, toy: ToyIndex) -> None:
    first = ask(engine, corpus, "1")
    await begun(toy)
    second, third = ask(engine, corpus, "2"), ask(engine, corpus, "3")
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    toy.let_go.set()

    await asyncio.gather(first, third)

    assert toy.batches == [["1"], ["3"]]


async def test_a_query_is_searched_as_long_as_one_of_its_callers_waits(
    engine: Engine, corpus: Corpus, toy: ToyIndex
) -> None:
    first = ask(engine, corpus, "1")
    await begun(toy)
    leaves, stays = ask(engine, corpus, "2"), ask(engine, corpus, "2")
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.sleep(0)
    toy.let_go.set()

    assert await asyncio.gather(first, stays) == [[[1]], [[2]]]


async def test_a_query_that_was_left_can_be_asked_again(engine: Engine, corpus: Corpus, toy: ToyIndex) -> None:
    first = ask(engine, corpus, "1")
    await begun(toy)
    leaves = ask(engine, corpus, "2")
    await asyncio.sleep(0)
    leaves.cancel()
    toy.let_go.set()
    await first

    assert await ask(engine, corpus, "2") == [[2]]


async def test_a_failed_search_reaches_its_callers_and_the_engine_lives_on(
    engine: Engine, corpus: Corpus, toy: ToyIndex
) -> None:
    toy.let_go.set()

    with pytest.raises(OSError, match="could not be read"):
        await ask(engine, corpus, "broken")

    assert await ask(engine, corpus, "1") == [[1]]


async def test_a_query_is_refused_at_once_when_its_deadline_cannot_be_kept(
    engine: Engine, corpus: Corpus, toy: ToyIndex
) -> None:
    toy.let_go.set()
    toy.seconds_per_search = 4.0
    await ask(engine, corpus, "1")
    toy.let_go.clear()
    toy.began.acquire()
    ahead = [ask(engine, corpus, "2")]
    await begun(toy)
    ahead.append(ask(engine, corpus, "3"))
    await asyncio.sleep(0)

    # One in hand, one waits, and its own search: 12 s, which is too much for 0.8 of 14 s and enough for 0.8 of 16 s.
    with pytest.raises(Overloaded, match=r"2 queries wait, about 8\.0 s") as refused:
        await ask(engine, corpus, "4", seconds=14.0)
    ahead.append(ask(engine, corpus, "5", seconds=16.0))
    await asyncio.sleep(0)
    toy.let_go.set()

    assert refused.value.retry_after_seconds == 8.0
    assert await asyncio.gather(*ahead) == [[[2]], [[3]], [[5]]]


async def test_a_small_batch_says_little_about_what_queries_of_a_large_one_cost(corpus: Corpus, toy: ToyIndex) -> None:
    engine = engine_of(toy, max_batch=10)
    engine.pace.expect(1.0)
    toy.let_go.set()
    toy.seconds_per_search = 51.0
    await ask(engine, corpus, "1")  # weighs a tenth of 0.2: 1 + 0.02 * (51 - 1) = 2 s
    toy.let_go.clear()
    toy.began.acquire()
    first = ask(engine, corpus, "2")
    await begun(toy)

    with pytest.raises(Overloaded, match=r"1 queries wait, about 2\.0 s"):
        await ask(engine, corpus, "3", seconds=4.0)
    toy.let_go.set()
    await first
    await engine.close()


async def test_whoever_comes_alone_is_served_whatever_the_estimate(
    engine: Engine, corpus: Corpus, toy: ToyIndex
) -> None:
    toy.let_go.set()
    toy.seconds_per_search = 1_000.0
    await ask(engine, corpus, "1")

    assert await ask(engine, corpus, "2", seconds=30.0) == [[2]]


async def test_a_patient_request_has_its_place_before_those_that_come_later(corpus: Corpus, toy: ToyIndex) -> None:
    """However much it costs: it must not wait until nobody else does."""
    engine = engine_of(toy, max_batch=8, bulk_slice=4, interactive_queries=1)
    engine.pace.expect(1.0)
    first = ask(engine, corpus, "1")
    await begun(toy)
    large = ask(engine, corpus, *map(str, range(10, 40)), seconds=6.0, patient=True)
    await asyncio.sleep(0)
    later = ask(engine, corpus, "2")
    await asyncio.sleep(0)
    toy.let_go.set()
    await asyncio.gather(first, large, later)
    await engine.close()

    assert toy.batches[1] == ["2", "10", "11", "12", "13"]


async def test_a_patient_callers_deadline_is_for_its_search_to_begin(
    engine: Engine, corpus: Corpus, toy: ToyIndex
) -> None:
    first = ask(engine, corpus, "1")
    await begun(toy)
    engine.pace.expect(8.0)
    toy.seconds_per_search = 4.0
    patient = ask(engine, corpus, "3", seconds=6.0, patient=True)
    await asyncio.sleep(0)
    toy.let_go.set()

    assert await asyncio.gather(first, patient) == [[[1]], [[3]]]


async def test_patience_ends_with_the_deadline(engine: Engine, corpus: Corpus, toy: ToyIndex) -> None:
    first = ask(engine, corpus, "1")
    await begun(toy)

    with pytest.raises(Overloaded, match="not answered in"):
        await ask(engine, corpus, "2", seconds=0.05, patient=True)
    toy.let_go.set()
    await first
    assert await ask(engine, corpus, "3") == [[3]]
    assert toy.batches == [["1"], ["3"]]


async def test_new_queries_are_refused_when_the_engine_does_not_come_back(
    engine: Engine, corpus: Corpus, toy: ToyIndex
) -> None:
    first = ask(engine, corpus, "1")
    await begun(toy)

    toy.now = 59.0
    with pytest.raises(Overloaded, match=r"1 queries wait, about 59\.0 s"):
        await ask(engine, corpus, "2")
    toy.now = 61.0
    with pytest.raises(NotReady, match="running for 61 s"):
        engine.check()
    toy.let_go.set()
    await first


async def test_a_query_whose_deadline_is_over_is_given_up_unsearched(
    engine: Engine, corpus: Corpus, toy: ToyIndex
) -> None:
    toy.seconds_per_search = 61
    first = ask(engine, corpus, "1")
    await begun(toy)
    second = ask(engine, corpus, "2")
    await asyncio.sleep(0)
    toy.let_go.set()

    assert await first == [[1]]
    with pytest.raises(Overloaded, match=r"waited 61\.0 s"):
        await second
    assert toy.batches == [["1"]]


async def test_a_query_that_its_batch_would_answer_too_late_leaves_its_place_to_others(
    engine: Engine, corpus: Corpus, toy: ToyIndex
) -> None:
    toy.let_go.set()
    toy.seconds_per_search = 4.0
    await ask(engine, corpus, "1")
    toy.let_go.clear()
    toy.began.acquire()
    toy.seconds_per_search = 20.0
    first = ask(engine, corpus, "2")
    await begun(toy)
    has_time, has_none = ask(engine, corpus, "3"), ask(engine, corpus, "4", seconds=26.0)
    await asyncio.sleep(0)
    toy.let_go.set()

    # When 20 s are over, a batch of two ends after 28 s or later.
    assert await asyncio.gather(first, has_time) == [[[2]], [[3]]]
    with pytest.raises(Overloaded, match="waited"):
        await has_none
    assert toy.batches == [["1"], ["2"], ["3"]]


async def test_a_patient_request_once_begun_is_finished_however_long_it_takes(corpus: Corpus, toy: ToyIndex) -> None:
    engine = engine_of(toy, max_batch=1)
    toy.seconds_per_search = 50.0

    patient = ask(engine, corpus, "1", "2", "3", seconds=0.05, patient=True)
    await begun(toy)
    await asyncio.sleep(0.1)
    toy.let_go.set()

    assert await patient == [[1], [2], [3]]
    await engine.close()


async def test_a_caller_is_told_at_its_deadline_though_its_search_hangs(
    engine: Engine, corpus: Corpus, toy: ToyIndex
) -> None:
    with pytest.raises(Overloaded, match="not answered in"):
        await ask(engine, corpus, "1", seconds=0.05)
    assert toy.batches == [["1"]]
    toy.let_go.set()

    assert await ask(engine, corpus, "2") == [[2]]


async def test_what_is_left_of_a_request_at_its_deadline_is_not_searched(corpus: Corpus, toy: ToyIndex) -> None:
    engine = engine_of(toy, max_batch=1)
    with pytest.raises(Overloaded):
        await ask(engine, corpus, "1", "2", "3", seconds=0.05)
    toy.let_go.set()
    await ask(engine, corpus, "4")
    await engine.close()

    assert toy.batches == [["1"], ["4"]]


async def test_one_callers_deadline_takes_nothing_from_another_who_asked_the_same(
    engine: Engine, corpus: Corpus, toy: ToyIndex
) -> None:
    hasty, other = ask(engine, corpus, "1", seconds=0.05), ask(engine, corpus, "1")
    with pytest.raises(Overloaded):
        await hasty
    toy.let_go.set()

    assert await other == [[1]]
    assert toy.batches == [["1"]]


async def test_closing_answers_what_waits_and_then_refuses(corpus: Corpus, toy: ToyIndex) -> None:
    engine = engine_of(toy)
    first = ask(engine, corpus, "1")
    await begun(toy)
    second = ask(engine, corpus, "2")
    await asyncio.sleep(0)
    toy.let_go.set()

    await engine.close()

    assert await asyncio.gather(first, second) == [[[1]], [[2]]]
    with pytest.raises(NotReady):
        await ask(engine, corpus, "3")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_engine_whose_thread_ended_says_so(toy: ToyIndex) -> None:
    engine = engine_of(toy)
    ended = asyncio.create_task(engine.run(sys.exit))

    async def check_on() -> None:
        while True:
            engine.check()
            await asyncio.sleep(0.01)

    with pytest.raises(NotReady, match="the search engine is not running"):
        await asyncio.wait_for(check_on(), timeout=30)
    ended.cancel()


async def test_errands_run_in_the_engines_thread_before_what_waits(
    engine: Engine, corpus: Corpus, toy: ToyIndex
) -> None:
    first = ask(engine, corpus, "1")
    await begun(toy)
    second = ask(engine, corpus, "2")
    await asyncio.sleep(0)
    errand = asyncio.create_task(engine.run(lambda: (threading.current_thread().name, list(toy.batches))))
    await asyncio.sleep(0)
    toy.let_go.set()

    assert await errand == ("retriever-engine", [["1"]])
    await asyncio.gather(first, second)


async def test_a_failed_errand_reaches_who_sent_for_it(engine: Engine, corpus: Corpus, toy: ToyIndex) -> None:
    toy.let_go.set()

    def fail() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        await engine.run(fail)

    assert await ask(engine, corpus, "1") == [[1]]


class ToySharedCache:
    def __init__(self) -> None:
        self.entries: dict[Key, Hits] = {}
        self.opened = asyncio.Event()
        self.asked: list[int] = []

    async def get(self, keys: Sequence[Key]) -> Mapping[Key, Hits]:
        self.asked.append(len(keys))
        await self.opened.wait()
        return {key: self.entries[key] for key in keys if key in self.entries}

    async def put(self, entries: Mapping[Key, Hits]) -> None:
        self.entries |= entries

    async def close(self) -> None:
        self.opened.clear()


async def test_what_a_replica_found_is_not_searched_again(corpus: Corpus, toy: ToyIndex) -> None:
    shared = ToySharedCache()
    shared.opened.set()
    toy.let_go.set()
    one, other = engine_of(toy, shared_cache=shared), engine_of(toy, shared_cache=shared)

    await ask(one, corpus, "1", "none", k=2)
    await one.close()
    shared.opened.set()
    found = await ask(other, corpus, "1", "none", "3", k=2)
    await other.close()

    assert found == [[1, 2], [], [3, 4]]
    assert toy.batches == [["1", "none"], ["3"]]


async def test_a_shared_cache_that_fails_costs_no_answer(corpus: Corpus, toy: ToyIndex) -> None:
    class Broken(ToySharedCache):
        async def get(self, keys: Sequence[Key]) -> Mapping[Key, Hits]:
            raise TypeError("an answer that nobody foresaw")

    toy.let_go.set()
    engine = engine_of(toy, shared_cache=Broken())

    assert await ask(engine, corpus, "1", "3") == [[1], [3]]
    await engine.close()


async def test_a_caller_who_leaves_during_the_look_up_does_not_take_the_query_along(
    corpus: Corpus, toy: ToyIndex
) -> None:
    shared = ToySharedCache()
    toy.let_go.set()
    engine = engine_of(toy, shared_cache=shared)
    leaves, stays = ask(engine, corpus, "1"), ask(engine, corpus, "1")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.sleep(0)
    shared.opened.set()

    assert await stays == [[1]]
    assert shared.asked == [1]
    await engine.close()
