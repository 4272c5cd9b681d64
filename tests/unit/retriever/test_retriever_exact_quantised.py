import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from searcher.contracts.errors import InvalidInput
from services.retriever.index import kernels
from services.retriever.index.exact import Flat, Fp16, best_of, half_vectors, in_order, write_half_vectors
from services.retriever.index.kernels import Threads
from services.retriever.index.protocol import NOTHING
from services.retriever.index.quantised import Quantised, train_codes, write_codes

DIM = 16


def unit_vectors(count: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


VECTORS = unit_vectors(3_000)


def by_hand(queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    return np.argsort(-(queries @ VECTORS.T), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("product_from", [1, 1_000])
@pytest.mark.parametrize("num_queries", [1, 5, 40])
def test_flat_search_is_exact_both_ways_through_the_matrix(
    num_threads: int, product_from: int, num_queries: int
) -> None:
    index = Flat(VECTORS, num_threads=num_threads)
    index.product_from_queries = product_from
    queries = unit_vectors(num_queries, seed=1)

    scores, rows = index.search(queries, 7)

    assert rows.tolist() == by_hand(queries, 7).tolist()
    assert scores == pytest.approx(np.take_along_axis(queries @ VECTORS.T, rows, axis=1), abs=1e-6)


@pytest.mark.parametrize("product_from", [1, 1_000])
def test_more_than_there_are_gives_all_once(product_from: int) -> None:
    index = Flat(VECTORS[:5], num_threads=3)
    index.product_from_queries = product_from

    _, rows = index.search(unit_vectors(2), 100)

    assert [sorted(found) for found in rows.tolist()] == [[0, 1, 2, 3, 4]] * 2


def with_equals(where: list[int]) -> NDArray[np.float32]:
    """VECTORS, of which those at `where` are the same."""
    vectors = VECTORS.copy()
    vectors[where] = VECTORS[0]
    return vectors


EQUALS = [1, 2, 700, 1_500, 1_501, 2_999]


@pytest.mark.parametrize("k", [1, 3, 6, 7, 8])
@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("product_from", [1, 1_000])
def test_equal_scores_are_in_the_order_of_the_corpus_whoever_else_asks(
    k: int, num_threads: int, product_from: int
) -> None:
    vectors = with_equals(EQUALS)
    index = Flat(vectors, num_threads=num_threads)
    index.product_from_queries = product_from

    _, rows = index.search(VECTORS[:1], k)

    assert rows[0, :7].tolist() == [0, *EQUALS][:k]


@pytest.mark.parametrize("k", [1, 3, 7, 8])
@pytest.mark.parametrize("product_from", [1, 1_000])
def test_equal_scores_of_16_bit_vectors_are_in_the_order_of_the_corpus(
    tmp_path: Path, k: int, product_from: int
) -> None:
    write_half_vectors(iter([with_equals(EQUALS)]), tmp_path / "codes", num_rows=len(VECTORS), dim=DIM)
    index = Fp16(tmp_path / "codes", num_threads=2)
    index.product_from_queries = product_from

    _, rows = index.search(VECTORS[:1], k)

    assert rows[0, :7].tolist() == [0, *EQUALS][:k]


def test_a_corpus_of_one_passage_many_times_is_not_sorted_as_a_whole() -> None:
    asked: list[int] = []

    def search(k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        asked.append(k)
        return np.ones((1, k), dtype=np.float32), np.arange(k)[None, ::-1]

    _, rows = in_order(search, 3, 1_000_000)

    assert rows.tolist() == [[0, 1, 2]]
    assert max(asked) < 5_000


def test_numpys_products_stay_on_one_thread_once_an_index_is_open() -> None:
    """The other threads of its OpenBLAS would spin on the encoder's cores. faiss' own waits as OpenMP is told to."""
    libraries = ThreadpoolController().select(user_api="blas")
    with libraries.limit(limits=2):
        Flat(VECTORS, num_threads=2)

        threads = {library["threading_layer"]: library["num_threads"] for library in libraries.info()}

    assert threads == {"pthreads": 1, "openmp": 2}


def test_a_crossover_is_measured_once_per_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"scan": 3.0, "multiply": 10.0}
    batches: list[int] = []

    def seconds_of(search: object, queries: NDArray[np.float32]) -> float:
        batches.append(len(queries))
        return seconds[search()] * (len(queries) if search() == "scan" else 1)  # type: ignore[operator]

    monkeypatch.setattr(kernels, "_seconds", seconds_of)
    monkeypatch.setattr(kernels, "_measured", {})
    sample = np.zeros((kernels.BLOCK_ROWS, 2), dtype=np.float32)

    crossovers = [
        kernels.crossover("toy", sample, scan=lambda *_: "scan", multiply=lambda *_: "multiply") for _ in range(2)
    ]

    assert crossovers == [4, 4]  # 4 queries scan in 12 s and multiply in 10; 2 scan in 6
    assert max(batches) == 4
    assert len(batches) == 3 * 2 * 2


def test_the_best_of_several_lists_are_in_order_and_equals_by_row() -> None:
    one = (np.array([[3.0, 1.0]], dtype=np.float32), np.array([[7, 2]]))
    other = (np.array([[3.0, 2.0]], dtype=np.float32), np.array([[4, 5]]))

    scores, rows = best_of([one, other], 3)

    assert rows.tolist() == [[4, 7, 5]]
    assert scores.tolist() == [[3.0, 3.0, 2.0]]


def test_a_stream_of_16_bit_vectors_is_the_file_that_faiss_writes(tmp_path: Path) -> None:
    codes = faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    codes.add(VECTORS[:100])
    faiss.write_index(codes, str(tmp_path / "faiss"))

    write_half_vectors(iter([VECTORS[:60], VECTORS[60:100]]), tmp_path / "ours", num_rows=100, dim=DIM)

    assert (tmp_path / "ours").read_bytes() == (tmp_path / "faiss").read_bytes()
    assert half_vectors(tmp_path / "ours", dim=DIM).tolist() == VECTORS[:100].astype(np.float16).tolist()


@pytest.mark.parametrize("product_from", [1, 1_000])
def test_16_bit_search_is_exact_on_the_rounded_vectors(tmp_path: Path, product_from: int) -> None:
    write_half_vectors(iter([VECTORS]), tmp_path / "codes", num_rows=len(VECTORS), dim=DIM)
    index = Fp16(tmp_path / "codes", num_threads=2)
    index.product_from_queries = product_from
    queries = unit_vectors(5, seed=1)

    scores, rows = index.search(queries, 10)

    rounded = VECTORS.astype(np.float16).astype(np.float32)
    assert scores == pytest.approx(-np.sort(-(queries @ rounded.T), axis=1)[:, :10], abs=1e-5)
    assert scores == pytest.approx(np.take_along_axis(queries @ rounded.T, rows, axis=1), abs=1e-5)


@pytest.fixture(params=["PQ4x4fs", f"RR{DIM},RaBitQfs", "IVF16,PQ4x4fs"])
def quantised(request: pytest.FixtureRequest, tmp_path: Path) -> Quantised:
    codes = train_codes(request.param, VECTORS)
    shard_rows = 3_000 if request.param.startswith("IVF") else 1_000
    write_codes(codes, iter(np.split(VECTORS, 6)), tmp_path / "codes", shard_rows=shard_rows)
    probes = 16 if request.param.startswith("IVF") else None
    return Quantised(tmp_path / "codes", VECTORS, candidates=40, num_probes=probes, num_threads=2)


def test_scores_of_a_quantised_index_are_exact(quantised: Quantised) -> None:
    queries = unit_vectors(20, seed=1)

    scores, rows = quantised.search(queries, 10)

    assert scores == pytest.approx(np.take_along_axis(queries @ VECTORS.T, rows, axis=1), abs=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(found)) == 10 for found in rows.tolist())


def test_codes_in_shards_find_what_codes_in_one_file_find(tmp_path: Path) -> None:
    codes, queries = train_codes("PQ4x4fs", VECTORS), unit_vectors(5, seed=1)
    for name, shard_rows in (("one", 3_000), ("three", 1_000)):
        write_codes(codes, iter(np.split(VECTORS, 6)), tmp_path / name, shard_rows=shard_rows)
    one, three = (
        Quantised(tmp_path / name, VECTORS, candidates=5, num_probes=None, num_threads=2) for name in ("one", "three")
    )

    assert [path.name for path in sorted((tmp_path / "three").iterdir())] == ["000.faiss", "001.faiss", "002.faiss"]
    found = [set(map(tuple, np.sort(index.search(queries, 10)[1], axis=1).tolist())) for index in (one, three)]
    assert found[0] == found[1]


def test_codes_that_are_not_of_all_vectors_are_refused(tmp_path: Path) -> None:
    write_codes(train_codes("PQ4x4fs", VECTORS), iter(np.split(VECTORS, 6)), tmp_path / "codes", shard_rows=1_000)
    (tmp_path / "codes" / "001.faiss").unlink()

    with pytest.raises(InvalidInput, match="codes of 2,000 vectors, and there are 3,000"):
        Quantised(tmp_path / "codes", VECTORS, candidates=1, num_probes=None, num_threads=1)


def test_only_shards_are_read_of_the_folder_of_codes(tmp_path: Path) -> None:
    write_codes(train_codes("PQ4x4fs", VECTORS), iter([VECTORS]), tmp_path / "codes", shard_rows=3_000)
    (tmp_path / "codes" / ".nfs0001").write_bytes(b"left by a file system")

    index = Quantised(tmp_path / "codes", VECTORS, candidates=40, num_probes=None, num_threads=1)

    assert index.search(VECTORS[:1], 1)[1].tolist() == [[0]]


def test_with_every_passage_a_candidate_a_quantised_index_is_exact(quantised: Quantised) -> None:
    quantised.candidates = 300
    queries = unit_vectors(3, seed=1)

    _, rows = quantised.search(queries, 10)

    assert rows.tolist() == by_hand(queries, 10).tolist()


@pytest.mark.parametrize("num_shards", [1, 3])
def test_whichever_thread_searches_faiss_uses_no_more_threads_than_the_index_may(
    num_shards: int, tmp_path: Path
) -> None:
    shard_rows = len(VECTORS) // num_shards
    write_codes(train_codes("PQ4x4fs", VECTORS), iter(np.split(VECTORS, 6)), tmp_path / "codes", shard_rows=shard_rows)
    index = Quantised(tmp_path / "codes", VECTORS, candidates=5, num_probes=None, num_threads=1)
    index._shards = [_Watched(shard) for shard in index._shards]
    with ThreadPoolExecutor(1, initializer=faiss.omp_set_num_threads, initargs=(7,)) as engine:
        engine.submit(index.search, VECTORS[:1], 1).result()

    assert [shard.num_threads for shard in index._shards] == [1] * num_shards


class _Watched:
    def __init__(self, shard: Any) -> None:
        self.shard, self.ntotal, self.num_threads = shard, shard.ntotal, 0

    def search(self, *asked: Any) -> Any:
        self.num_threads = faiss.omp_get_max_threads()
        return self.shard.search(*asked)


def test_parts_of_a_search_are_searched_at_once_the_callers_thread_among_them() -> None:
    all_at_once, used = threading.Barrier(3), set[int]()

    def search(part: int) -> int:
        all_at_once.wait(timeout=30)
        used.add(threading.get_ident())
        return 2 * part

    assert Threads(3).each(search, range(3)) == [0, 2, 4]
    assert threading.get_ident() in used


def test_more_parts_than_threads_are_found_in_their_order() -> None:
    assert Threads(3).each(lambda part: 2 * part, range(20)) == [2 * part for part in range(20)]


@pytest.mark.parametrize("failing", range(3))
def test_a_part_that_fails_fails_the_search_in_whichever_thread(failing: int) -> None:
    all_at_once = threading.Barrier(3)

    def search(part: int) -> int:
        all_at_once.wait(timeout=30)
        if part == failing:
            raise ValueError(f"part {part}")
        return part

    with pytest.raises(ValueError, match=f"part {failing}"):
        Threads(3).each(search, range(3))


def test_lists_that_hold_too_little_are_added_to_until_k_are_found(tmp_path: Path) -> None:
    codes = train_codes("IVF16,PQ4x4fs", VECTORS)
    write_codes(codes, iter([VECTORS]), tmp_path / "codes", shard_rows=len(VECTORS))
    index = Quantised(tmp_path / "codes", VECTORS, candidates=2, num_probes=1, num_threads=1)

    _, few = index.search(VECTORS[:5], 3)
    _, many = index.search(VECTORS[:5], 2_000)
    _, everything = index.search(VECTORS[:5], 3_000)
    _, again = index.search(VECTORS[:5], 3)

    assert [len(set(rows) - {NOTHING}) for rows in many.tolist()] == [2_000] * 5
    assert [len(set(rows) - {NOTHING}) for rows in everything.tolist()] == [3_000] * 5
    assert few.tolist() == again.tolist()
