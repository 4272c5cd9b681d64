from pathlib import Path
from typing import cast

from services.retriever.serving.lanes import Lanes, Request, Waiting
from services.retriever.serving.library import Corpus

NO_CORPUS = cast(Corpus, Path())


def jobs(*queries: str) -> list[Waiting]:
    return [Waiting(query.encode(), query, 1, NO_CORPUS, [Request(deadline=1.0, since=0.0)]) for query in queries]


def taken(lanes: Lanes) -> list[str]:
    return [job.query for job in lanes.take()]


def test_the_bulk_lane_gets_whole_batches_while_nobody_is_in_a_hurry() -> None:
    lanes = Lanes(max_batch=4, bulk_slice=1)
    lanes.add(jobs(*"abcdef"), bulk=True)

    assert (taken(lanes), taken(lanes), taken(lanes)) == (list("abcd"), list("ef"), [])


def test_the_bulk_lane_gets_its_slice_while_somebody_is() -> None:
    lanes = Lanes(max_batch=4, bulk_slice=1)
    lanes.add(jobs(*"abc"), bulk=True)
    lanes.add(jobs(*"123456"), bulk=False)

    assert taken(lanes) == ["1", "2", "3", "a"]
    assert taken(lanes) == ["4", "5", "6", "b"]
    assert taken(lanes) == ["c"]


def test_a_promoted_query_is_taken_once() -> None:
    lanes = Lanes(max_batch=2, bulk_slice=1)
    lanes.add(bulk := jobs("a", "b", "c"), bulk=True)
    lanes.promote(bulk[2])

    assert (taken(lanes), taken(lanes), taken(lanes)) == (["c", "a"], ["b"], [])


def test_ahead_of_a_query_in_a_hurry_are_its_lane_and_the_slices_beside_it() -> None:
    lanes = Lanes(max_batch=4, bulk_slice=1)
    lanes.add(jobs(*"abcdefgh"), bulk=True)
    assert (lanes.ahead(bulk=False), lanes.ahead(bulk=True)) == (0, 8)

    lanes.add(jobs("1", "2", "3", "4"), bulk=False)  # two batches of at most three, each with one of the bulk lane

    assert (lanes.ahead(bulk=False), lanes.ahead(bulk=True)) == (6, 12)
