"""Service throughput against its own raw loop: the same encoder, index and questions without HTTP, at the same batches.

    python -m benchmarks.retriever_throughput [--quick]

Service: 64 connections in a closed loop, one question a request, answers not cached. Raw: `index.search` in a loop, at
the mean batch size that the service had in that round. Then one connection alone against the raw loop at batch 1, in
turns of 50 questions, since a machine's speed may drift by more than what is measured. Rounds alternate; service,
client and raw loop share the machine's cores. A raw spread above 0.15 says that neighbours took so much of them that
the rounds should be measured again.
"""

import os
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.measure import median, percentile, report, table
from benchmarks.retriever_service import (
    Service,
    Worker,
    arguments,
    chunks,
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


def main() -> None:
    options = arguments(__doc__)
    index_dir = ensure_index(options.index)
    rounds, num_queries, num_single = (2, 1_500, 200) if options.quick else (5, 2_000, 400)
    asked = questions()[: rounds * num_queries]
    rows: list[tuple[object, ...]] = [("round", "batch", "service q/s", "raw q/s", "ratio", "c=1 p50 ms", "raw p50 ms")]
    ratios, overheads_ms, raw_speeds, errors = [], [], [], 0
    with Worker() as client, Worker() as raw, Service(index_dir, threads=options.threads, cache_entries=0) as service:
        client.run(closed_loop, service.port, [search_body(query) for query in asked[:200]], CONNECTIONS)
        for number in range(rounds):
            queries = asked[number * num_queries : (number + 1) * num_queries]
            bodies = [search_body(query) for query in queries]
            before = service.metrics()
            seconds, answers = client.run(closed_loop, service.port, bodies, CONNECTIONS)
            batch = mean_batch(before, service.metrics())
            raw_seconds = sum(raw.run(raw_loop, index_dir, options.threads, queries, max(1, round(batch))))
            p50, raw_p50 = alone(service, client, raw, index_dir, options.threads, queries[:num_single])
            errors += sum(answer.status != 200 for answer in answers)
            ratios.append(raw_seconds / seconds)
            overheads_ms.append(1e3 * (p50 - raw_p50))
            raw_speeds.append(num_queries / raw_seconds)
            speeds = num_queries / seconds, raw_speeds[-1]
            rows.append((number + 1, batch, *speeds, ratios[-1], 1e3 * p50, 1e3 * raw_p50))
    table(rows)
    report(
        "retriever_throughput",
        ratio=median(ratios),
        goal=GOAL,
        ratio_per_round=[round(ratio, 3) for ratio in ratios],
        raw_spread=round((max(raw_speeds) - min(raw_speeds)) / median(raw_speeds), 2),
        p50_overhead_ms=round(median(overheads_ms), 3),
        p50_overhead_goal_ms=GOAL_MS,
        errors=errors,
        queries=rounds * num_queries,
        threads=options.threads,
        cores=len(os.sched_getaffinity(0)),
    )


if __name__ == "__main__":
    main()
