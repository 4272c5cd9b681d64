"""Exact search over a million vectors: the retriever's way through the matrix against faiss' default call.

    python -m benchmarks.flat_kernel [--quick]

Both search the same matrix with the same threads, in alternating rounds, at 1, 16 and 64 queries at once; the ratio is
of the medians. faiss' default switches from scanning to matrix products at 334 queries of 384 dimensions, a limit that
was tuned on an index that fits the cache.
"""

import argparse
import os
import time
from collections.abc import Callable

import numpy as np

from benchmarks.measure import alternate, median, report, table
from services.retriever.encoders.protocol import Vectors
from services.retriever.index.exact import Flat

GOALS = {1: 1.3, 16: 2.5, 64: 7.0}
DIM, K = 384, 10
Search = Callable[[Vectors], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the vectors, three rounds")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    num_vectors, rounds = (100_000, 3) if options.quick else (1_000_000, 7)
    vectors_ND, queries_QD = random_vectors(num_vectors, seed=0), random_vectors(max(GOALS), seed=1)
    default = default_search(vectors_ND, options.threads)
    started = time.perf_counter()
    ours = Flat(vectors_ND, num_threads=options.threads)
    calibration_seconds = time.perf_counter() - started

    rows: list[tuple[object, ...]] = [("queries", "faiss ms", "ours ms", "ratio", "goal")]
    ratios = dict[int, float]()
    for num_queries, goal in GOALS.items():
        queries = queries_QD[:num_queries]
        assert_same(default(queries), ours.search(queries, K)[1])
        before, after = compare(default, lambda queries: ours.search(queries, K), queries, rounds)
        ratios[num_queries] = median(before) / median(after)
        rows.append((num_queries, median(before), median(after), ratios[num_queries], goal))
    table(rows)
    report(
        "flat_kernel",
        ratio=ratios[64],
        goal=GOALS[64],
        ratio_at_16=round(ratios[16], 3),
        goal_at_16=GOALS[16],
        ratio_at_1=round(ratios[1], 3),
        goal_at_1=GOALS[1],
        vectors=num_vectors,
        dim=DIM,
        threads=options.threads,
        product_from_queries=ours.product_from_queries,
        calibration_seconds=round(calibration_seconds, 2),
    )


def random_vectors(count: int, *, seed: int) -> Vectors:
    random = np.random.default_rng(seed)
    vectors_ND = np.empty((count, DIM), dtype=np.float32)
    for start in range(0, count, 50_000):
        stop = min(start + 50_000, count)
        vectors_ND[start:stop] = random.standard_normal((stop - start, DIM), dtype=np.float32)
    return vectors_ND


def default_search(vectors_ND: Vectors, num_threads: int) -> Callable[[Vectors], np.ndarray]:
    """As `IndexFlatIP.search` does it when nothing is configured."""
    import faiss

    threshold = faiss.cvar.distance_compute_blas_threshold
    block_rows = faiss.cvar.distance_compute_blas_database_bs

    def search(queries_QD: Vectors) -> np.ndarray:
        faiss.omp_set_num_threads(num_threads)
        ours = faiss.cvar.distance_compute_blas_threshold, faiss.cvar.distance_compute_blas_database_bs
        faiss.cvar.distance_compute_blas_threshold, faiss.cvar.distance_compute_blas_database_bs = threshold, block_rows
        _, rows_QK = faiss.knn(queries_QD, vectors_ND, K, metric=faiss.METRIC_INNER_PRODUCT)
        faiss.cvar.distance_compute_blas_threshold, faiss.cvar.distance_compute_blas_database_bs = ours
        return rows_QK

    return search


def assert_same(one: np.ndarray, other: np.ndarray) -> None:
    agree = np.mean([len(set(a) & set(b)) / K for a, b in zip(one.tolist(), other.tolist(), strict=True)])
    assert agree > 0.999, agree


def compare(one: Search, other: Search, queries: Vectors, rounds: int) -> list[list[float]]:
    return alternate(rounds, lambda: milliseconds(lambda: one(queries)), lambda: milliseconds(lambda: other(queries)))


def milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
