"""The engine over an index of one's own making: it records what it is asked and waits until it is let go."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from searcher.contracts.errors import NotFound, NotReady, Overloaded
from services.retriever.build_index import build_index
from services.retriever.engine import Engine
from services.retriever.index import NOTHING, Rows, Scores
from services.retriever.library import Corpus, Library

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


def engine_of(corpus: Corpus, toy: ToyIndex, *, max_batch: int = 64) -> Engine:
    """An engine that lives in the toy's time."""
    engine = Engine(
        {"world": corpus}, max_batch=max_batch, queue_seconds=60.0, cache_entries=100, clock=lambda: toy.now
    )
    engine.start()
    return engine


@pytest.fixture
async def engine(corpus: Corpus, toy: ToyIndex) -> AsyncIterator[Engine]:
    engine = engine_of(corpus, toy)
    yield engine
    toy.let_go.set()
    await engine.close()


async def ask(engine: Engine, query: str, k: int = 1) -> list[int]:
    (hits,) = await engine.search([query], corpus=engine.corpus("world"), k=k)
    return hits.rows.tolist()


async def while_busy(engine: Engine, toy: ToyIndex, *queries: str) -> list[asyncio.Task[list[int]]]:
    """The first query is being searched; the others wait behind it."""
    tasks = [asyncio.create_task(ask(engine, queries[0]))]
    assert await asyncio.to_thread(toy.began.acquire, timeout=30)
    tasks += [asyncio.create_task(ask(engine, query)) for query in queries[1:]]
    await asyncio.sleep(0)  # each task reaches the queue
    return tasks


async def test_hits_come_in_the_order_of_the_queries(engine: Engine, toy: ToyIndex) -> None:
    toy.let_go.set()

    found = await engine.search(["5", "none", "1", "5"], corpus=engine.corpus("world"), k=2)

    assert [hits.rows.tolist() for hits in found] == [[5, 6], [], [1, 2], [5, 6]]


async def test_what_arrives_while_the_engine_is_busy_becomes_one_batch(engine: Engine, toy: ToyIndex) -> None:
    tasks = await while_busy(engine, toy, "1", "2", "3", "4")
    toy.let_go.set()

    found = await asyncio.gather(*tasks)

    assert found == [[1], [2], [3], [4]]
    assert toy.batches == [["1"], ["2", "3", "4"]]


async def test_a_batch_has_a_limit(corpus: Corpus, toy: ToyIndex) -> None:
    engine = engine_of(corpus, toy, max_batch=2)
    toy.let_go.set()

    await engine.search(["1", "2", "3", "4", "5"], corpus=corpus, k=1)
    await engine.close()

    assert toy.batches == [["1", "2"], ["3", "4"], ["5"]]


async def test_identical_queries_of_one_batch_are_searched_once(engine: Engine, toy: ToyIndex) -> None:
    tasks = await while_busy(engine, toy, "1", "2", "2", "2")
    toy.let_go.set()

    found = await asyncio.gather(*tasks)

    assert found == [[1], [2], [2], [2]]
    assert toy.batches == [["1"], ["2"]]


async def test_everyone_gets_as_many_as_they_asked_for(engine: Engine, toy: ToyIndex) -> None:
    first = asyncio.create_task(ask(engine, "1"))
    await asyncio.to_thread(toy.began.acquire, timeout=30)
    shallow, deep = asyncio.create_task(ask(engine, "2", k=1)), asyncio.create_task(ask(engine, "2", k=3))
    await asyncio.sleep(0)
    toy.let_go.set()

    assert await asyncio.gather(first, shallow, deep) == [[1], [2], [2, 3, 4]]


async def test_an_answer_given_once_is_not_searched_again(engine: Engine, toy: ToyIndex) -> None:
    toy.let_go.set()

    assert await ask(engine, "1") == await ask(engine, "1") == [1]
    assert toy.batches == [["1"]]


async def test_a_query_whose_caller_left_is_not_searched(engine: Engine, toy: ToyIndex) -> None:
    first, second, third = await while_busy(engine, toy, "1", "2", "3")
    second.cancel()
    await asyncio.sleep(0)
    toy.let_go.set()

    await asyncio.gather(first, third)

    assert toy.batches == [["1"], ["3"]]


async def test_a_failed_search_reaches_its_callers_and_the_engine_lives_on(engine: Engine, toy: ToyIndex) -> None:
    toy.let_go.set()

    with pytest.raises(OSError, match="could not be read"):
        await ask(engine, "broken")

    assert await ask(engine, "1") == [1]


async def test_new_queries_are_refused_when_those_ahead_take_too_long(engine: Engine, toy: ToyIndex) -> None:
    toy.let_go.set()
    toy.seconds_per_search = 400.0
    await ask(engine, "1")  # a tenth of what it cost is believed: 40 s a query
    toy.let_go.clear()
    toy.began.acquire()
    tasks = await while_busy(engine, toy, "2", "3")

    with pytest.raises(Overloaded, match=r"2 queries wait, about 80\.0 s"):
        await ask(engine, "4")

    toy.let_go.set()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_new_queries_are_refused_when_the_engine_does_not_come_back(engine: Engine, toy: ToyIndex) -> None:
    await while_busy(engine, toy, "1")
    toy.now += 61

    with pytest.raises(Overloaded, match=r"1 queries wait, about 61\.0 s"):
        await ask(engine, "2")


async def test_a_query_that_waited_too_long_is_given_up_unsearched(engine: Engine, toy: ToyIndex) -> None:
    toy.seconds_per_search = 61
    first, second = await while_busy(engine, toy, "1", "2")
    toy.let_go.set()

    assert await first == [1]
    with pytest.raises(Overloaded, match=r"waited 61\.0 s"):
        await second
    assert toy.batches == [["1"]]


async def test_a_request_once_begun_is_finished_however_long_it_takes(corpus: Corpus, toy: ToyIndex) -> None:
    engine = engine_of(corpus, toy, max_batch=1)
    toy.seconds_per_search = 50.0
    toy.let_go.set()

    found = await engine.search(["1", "2", "3"], corpus=corpus, k=1)
    await engine.close()

    assert [hits.rows.tolist() for hits in found] == [[1], [2], [3]]


async def test_closing_answers_what_waits_and_then_refuses(corpus: Corpus, toy: ToyIndex) -> None:
    engine = engine_of(corpus, toy)
    tasks = await while_busy(engine, toy, "1", "2")
    toy.let_go.set()

    await engine.close()

    assert await asyncio.gather(*tasks) == [[1], [2]]
    with pytest.raises(NotReady):
        await ask(engine, "3")


async def test_an_unknown_corpus_is_refused_with_the_known_ones(engine: Engine) -> None:
    with pytest.raises(NotFound, match="'moon' is not one of world"):
        engine.corpus("moon")
