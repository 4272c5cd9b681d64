"""What the cache and single flight save in training: a search-RL trace with and without them.

    python -m benchmarks.retriever_cache [--quick]

The trace: steps of 64 questions, 16 samples each. The samples' first query is the same, and they send it at about the
same time; each later query is drawn from the questions of the data by Zipf's law. A closed loop of
1,024 connections, one for each sample of a step.
Without: the cache is off, and every query is made its own by blanks at its end, which the encoder's tokenizer drops, so
that none is coalesced either. Also without the cache only: copies in flight at once are still searched once.
"""

import random
from pathlib import Path

from benchmarks.measure import median, report, table
from benchmarks.retriever_service import (
    Service,
    arguments,
    closed_loop,
    ensure_index,
    in_client_process,
    questions,
    search_body,
)

CONNECTIONS, SAMPLES, GOAL, GOAL_SEARCHED = 1_024, 16, 5.0, 1.1


def trace(num_steps: int, groups: int, seed: int) -> list[str]:
    """Queries in the order they are sent: per step the first queries group by group, then the later ones."""
    pool = questions()
    chance = random.Random(seed)
    ranks = range(len(pool) // 2)
    weights = [1 / (rank + 1) ** 1.1 for rank in ranks]
    first = pool[len(pool) // 2 :]
    chance.shuffle(first)
    queries: list[str] = []
    for step in range(num_steps):
        for question in first[step * groups : (step + 1) * groups]:
            queries += [question] * SAMPLES
        queries += [pool[rank] for rank in chance.choices(ranks, weights, k=groups * SAMPLES)]
    return queries


def play(index_dir: Path, threads: int, queries: list[str], cache_entries: int) -> tuple[float, float, int]:
    """Queries a second, queries that went through the index, and errors."""
    name = 'searcher_retriever_searched_queries_total{corpus="default"}'
    with Service(index_dir, threads=threads, cache_entries=cache_entries) as service:
        before = service.metrics().get(name, 0.0)
        seconds, answers = in_client_process(
            closed_loop, service.port, [search_body(query) for query in queries], CONNECTIONS
        )
        searched = service.metrics()[name] - before
    return len(queries) / seconds, searched, sum(answer.status != 200 for answer in answers)


def main() -> None:
    options = arguments(__doc__)
    index_dir = ensure_index(options.index)
    rounds, steps, groups = (1, 4, 32) if options.quick else (3, 8, 64)
    rows: list[tuple[object, ...]] = [
        ("round", "queries", "distinct", "searched", "q/s", "q/s cache off", "q/s neither", "ratio", "over distinct")
    ]
    ratios, only_cache, over_distinct, errors = [], [], [], 0
    for number in range(rounds):
        queries = trace(steps, groups, seed=number)
        distinct = len(set(queries))
        part = queries[: len(queries) // steps]  # one step is enough to measure what every query costs
        apart = [query + f"{position:b}".translate({48: " ", 49: "\t"}) for position, query in enumerate(part)]
        with_speed, searched, failed = play(index_dir, options.threads, queries, 100_000)
        off_speed, _, off_failed = play(index_dir, options.threads, part, 0)
        neither_speed, _, neither_failed = play(index_dir, options.threads, apart, 0)
        ratios.append(with_speed / neither_speed)
        only_cache.append(with_speed / off_speed)
        over_distinct.append(searched / distinct)
        errors += failed + off_failed + neither_failed
        speeds = with_speed, off_speed, neither_speed
        rows.append((number + 1, len(queries), distinct, int(searched), *speeds, ratios[-1], over_distinct[-1]))
    table(rows)
    report(
        "retriever_cache",
        ratio=median(ratios),
        goal=GOAL,
        searched_over_distinct=round(median(over_distinct), 4),
        searched_over_distinct_goal=GOAL_SEARCHED,
        ratio_to_cache_off_with_coalescing=round(median(only_cache), 2),
        errors=errors,
        threads=options.threads,
    )


if __name__ == "__main__":
    main()
