"""Service throughput against its own raw loop: the same encoder, index and questions without HTTP, at the same batches.

    python -m benchmarks.retriever_throughput [--quick]

Service: 64 connections in a closed loop, one question a request, answers not cached. Raw: `index.search` in a loop, at
the mean batch size that the service had in that round. Then one connection alone against the raw loop at batch 1, in
turns of 50 questions, since a machine's speed may drift by more than what is measured. Every round has processes of its
own: where a process's memory happens to lie decides a twentieth of its speed. Service, client and raw loop share the
machine's cores. A raw spread above 0.15 says that neighbours took so much of them that the rounds should be measured
again.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.measure import chunks, median, percentile, report, table
from benchmarks.retriever_service import (
    Service,
    Worker,
    arguments,
    closed_loop,
    ensure_index,
    mean_batch,
    one_by_one,
    questions,
    search_body,
)

CONNECTIONS, TURN, GOAL, GOAL_MS = 64, 50, 0.90, 1.0


def raw_loop(index_dir: Path, threads: int, queries: Sequence[str], batch: int) -> list[float]:
    """Seconds of each batch."""
    index = _opened(index_dir, threads)
    for warming in chunks(queries[: 4 * batch], batch):
        index.search(warming, 3)
    seconds = []
    for asked in chunks(queries, batch):
        began = time.perf_counter()
        index.search(asked, 3)
        seconds.append(time.perf_counter() - began)
    return seconds


@cache
def _opened(index_dir: Path, threads: int) -> Any:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from services.retriever.serving.library import Library, check

    corpus = Library(num_threads=threads).open(index_dir, "bench")
    check(corpus)
    return corpus.index


def alone(
    service: Service, client: Worker, raw: Worker, index_dir: Path, threads: int, queries: Sequence[str]
) -> tuple[float, float]:
    """Seconds at the median of one request at a time, and of the raw loop at batch 1: the same questions, in turns."""
    by_service, by_raw = list[float](), list[float]()
    for part in chunks(queries, TURN):
        by_service += client.run(one_by_one, service.port, [search_body(query) for query in part])
        by_raw += raw.run(raw_loop, index_dir, threads, part, 1)
    return percentile(by_service, 50), percentile(by_raw, 50)


@dataclass(frozen=True)
class Round:
    batch: float
    service_qps: float
    raw_qps: float
    p50_ms: float
    raw_p50_ms: float
    errors: int

    @property
    def ratio(self) -> float:
        return self.service_qps / self.raw_qps

    @property
    def overhead_ms(self) -> float:
        return self.p50_ms - self.raw_p50_ms


def measure(index_dir: Path, threads: int, queries: Sequence[str], num_single: int) -> Round:
    with Worker() as client, Worker() as raw, Service(index_dir, threads=threads, cache_entries=0) as service:
        bodies = [search_body(query) for query in queries]
        client.run(closed_loop, service.port, bodies[-200:], CONNECTIONS)
        before = service.metrics()
        seconds, answers = client.run(closed_loop, service.port, bodies, CONNECTIONS)
        batch = mean_batch(before, service.metrics())
        raw_seconds = sum(raw.run(raw_loop, index_dir, threads, queries, max(1, round(batch))))
        p50, raw_p50 = alone(service, client, raw, index_dir, threads, queries[:num_single])
    errors = sum(answer.status != 200 for answer in answers)
    return Round(batch, len(queries) / seconds, len(queries) / raw_seconds, 1e3 * p50, 1e3 * raw_p50, errors)


def main() -> None:
    options = arguments(__doc__)
    index_dir = ensure_index(options.index)
    num_rounds, num_queries, num_single = (2, 1_500, 200) if options.quick else (7, 1_500, 400)
    asked = questions()[: num_rounds * num_queries]
    rounds = [measure(index_dir, options.threads, queries, num_single) for queries in chunks(asked, num_queries)]
    table(
        [
            ("round", "batch", "service q/s", "raw q/s", "ratio", "c=1 p50 ms", "raw p50 ms", "p50 - raw"),
            *(
                (n, r.batch, r.service_qps, r.raw_qps, r.ratio, r.p50_ms, r.raw_p50_ms, r.overhead_ms)
                for n, r in enumerate(rounds, start=1)
            ),
        ]
    )
    raw_speeds = [r.raw_qps for r in rounds]
    report(
        "retriever_throughput",
        ratio=median([r.ratio for r in rounds]),
        goal=GOAL,
        ratio_per_round=[round(r.ratio, 3) for r in rounds],
        raw_spread=round((max(raw_speeds) - min(raw_speeds)) / median(raw_speeds), 2),
        p50_overhead_ms=round(median([r.overhead_ms for r in rounds]), 3),
        p50_overhead_goal_ms=GOAL_MS,
        p50_overhead_ms_per_round=[round(r.overhead_ms, 2) for r in rounds],
        errors=sum(r.errors for r in rounds),
        queries=num_rounds * num_queries,
        threads=options.threads,
        cores=len(os.sched_getaffinity(0)),
    )


if __name__ == "__main__":
    main()
