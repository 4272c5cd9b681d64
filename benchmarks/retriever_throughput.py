"""Service throughput against its own raw loop: the same encoder, index and questions without HTTP, at the same batches.

    python -m benchmarks.retriever_throughput [--quick]

Service: 64 connections in a closed loop, one question a request, answers not cached. Raw: `index.search` in a loop, at
the mean batch size that the service had in that round. Then one connection alone against the raw loop at batch 1.
Rounds alternate; service, client and raw loop share the machine's cores. A raw spread above 0.15 says that neighbours
took so much of them that the rounds should be measured again.
"""

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.measure import median, percentile, report, table
from benchmarks.retriever_service import (
    Service,
    arguments,
    chunks,
    closed_loop,
    ensure_index,
    in_client_process,
    mean_batch,
    questions,
    search_body,
)

CONNECTIONS, GOAL, GOAL_MS = 64, 0.90, 1.0


def raw_loop(index_dir: Path, threads: int, queries: Sequence[str], batch: int) -> list[float]:
    """Seconds of each batch."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from services.retriever.library import Library, check

    corpus = Library(num_threads=threads).open(index_dir, "bench")
    check(corpus)
    for warming in chunks(queries[: 4 * batch], batch):
        corpus.index.search(warming, 3)
    seconds = []
    for asked in chunks(queries, batch):
        began = time.perf_counter()
        corpus.index.search(asked, 3)
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    options = arguments(__doc__)
    index_dir = ensure_index(options.index)
    rounds, num_queries, num_single = (2, 1_500, 150) if options.quick else (5, 2_000, 300)
    asked = questions()[: rounds * num_queries]
    raw = partial(in_client_process, raw_loop, index_dir, options.threads)
    rows: list[tuple[object, ...]] = [("round", "batch", "service q/s", "raw q/s", "ratio", "c=1 p50 ms", "raw p50 ms")]
    ratios, overheads_ms, raw_speeds, errors = [], [], [], 0
    with Service(index_dir, threads=options.threads, cache_entries=0) as service:
        in_client_process(closed_loop, service.port, [search_body(query) for query in asked[:200]], CONNECTIONS)
        for number in range(rounds):
            queries = asked[number * num_queries : (number + 1) * num_queries]
            bodies = [search_body(query) for query in queries]
            before = service.metrics()
            seconds, answers = in_client_process(closed_loop, service.port, bodies, CONNECTIONS)
            batch = mean_batch(before, service.metrics())
            raw_seconds = sum(raw(queries, max(1, round(batch))))
            _, alone = in_client_process(closed_loop, service.port, bodies[:num_single], 1)
            p50_ms = 1e3 * percentile([answer.seconds for answer in alone], 50)
            raw_p50_ms = 1e3 * percentile(raw(queries[:num_single], 1), 50)
            errors += sum(answer.status != 200 for answer in [*answers, *alone])
            ratios.append(raw_seconds / seconds)
            overheads_ms.append(p50_ms - raw_p50_ms)
            raw_speeds.append(num_queries / raw_seconds)
            speeds = num_queries / seconds, raw_speeds[-1]
            rows.append((number + 1, batch, *speeds, ratios[-1], p50_ms, raw_p50_ms))
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
