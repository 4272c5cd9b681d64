"""Twice the load that the service can carry, and what becomes of it.

    python -m benchmarks.retriever_overload [--quick]

Capacity: 64 connections in a closed loop. Then an open loop at twice that rate: Poisson arrivals, deadline 2 s, latency
counted from when a request should have been sent. Good is what is answered inside its deadline. Recovery: the time
after the last arrival until a request alone is answered within twice its usual time. A capacity spread (after against
before) above 0.15 says that neighbours took so much of the machine that it should be measured again.
"""

import asyncio
import time

from benchmarks.measure import median, percentile, report, table
from benchmarks.retriever_service import (
    Answer,
    Connection,
    Service,
    arguments,
    closed_loop,
    ensure_index,
    in_client_process,
    open_loop,
    questions,
    search_body,
)

CONNECTIONS, DEADLINE_SECONDS, GOAL, GOAL_RECOVERY = 64, 2.0, 0.90, 2.0
ANON = 'searcher_retriever_resident_bytes{kind="anon"}'


def overload_and_recover(
    port: int, bodies: list[bytes], rate: float, single: list[bytes], usual_seconds: float
) -> tuple[list[Answer], float]:
    """The answers, and seconds after the last arrival until a request alone is fast again."""
    answers = open_loop(port, bodies, rate, DEADLINE_SECONDS)
    last = max(answer.at for answer in answers)
    drained = max(answer.at + answer.seconds for answer in answers)
    began = time.perf_counter()

    async def until_fast() -> None:
        connection = Connection(port)
        for body in single:
            sent = time.perf_counter()
            await connection.post(body)
            if time.perf_counter() - sent < 2 * usual_seconds:
                break
        connection.close()

    asyncio.run(until_fast())
    return answers, (drained - last) + time.perf_counter() - began


def main() -> None:
    options = arguments(__doc__)
    index_dir = ensure_index(options.index)
    seconds, num_capacity = (10.0, 1_500) if options.quick else (60.0, 3_000)
    asked = [search_body(query) for query in questions()]
    with Service(index_dir, threads=options.threads, cache_entries=0) as service:
        in_client_process(closed_loop, service.port, asked[:300], CONNECTIONS)
        _, alone = in_client_process(closed_loop, service.port, asked[:100], 1)
        usual = median(answer.seconds for answer in alone)

        def capacity() -> float:
            taken, _ = in_client_process(closed_loop, service.port, asked[:num_capacity], CONNECTIONS)
            return num_capacity / taken

        capacity()  # the first is too low: the machine wakes up
        before = capacity()
        arrivals = int(2 * before * seconds)
        bodies = [asked[n % len(asked)] for n in range(arrivals)]
        memory = service.metrics()[ANON]
        answers, recovery = in_client_process(
            overload_and_recover, service.port, bodies, 2 * before, asked[-200:], usual
        )
        memory_after = service.metrics()[ANON]
        after = capacity()
    lasted = max(answer.at for answer in answers)
    good = [answer for answer in answers if answer.status == 200 and answer.seconds <= DEADLINE_SECONDS]
    late = [answer for answer in answers if answer.status == 200 and answer.seconds > DEADLINE_SECONDS]
    refused = [answer for answer in answers if answer.status == 503 and answer.retry_after]
    other = len(answers) - len(good) - len(late) - len(refused)
    goodput, carried = len(good) / lasted, (before + after) / 2
    good_seconds, refused_seconds = ([answer.seconds for answer in part] for part in (good, refused))
    table(
        [
            ("", "q/s", "p50 s", "p99 s"),
            ("capacity before", before, "", ""),
            ("offered", len(answers) / lasted, "", ""),
            ("good", goodput, percentile(good_seconds, 50), percentile(good_seconds, 99)),
            ("late", len(late) / lasted, "", ""),
            ("refused", len(refused) / lasted, percentile(refused_seconds, 50), percentile(refused_seconds, 99)),
            ("anything else", other / lasted, "", ""),
            ("capacity after", after, "", ""),
        ]
    )
    report(
        "retriever_overload",
        ratio=goodput / carried,
        goal=GOAL,
        seconds=round(lasted, 1),
        capacity_spread=round(abs(before - after) / carried, 2),
        offered_over_capacity=round(len(answers) / lasted / carried, 2),
        late=len(late),
        refused=len(refused),
        neither_200_nor_503_with_retry_after=other,
        p99_of_good_seconds=round(percentile(good_seconds, 99), 3),
        deadline_seconds=DEADLINE_SECONDS,
        own_memory_growth_mib=round((memory_after - memory) / 2**20, 1),
        own_memory_mib=round(memory_after / 2**20, 1),
        recovery_seconds=round(recovery, 3),
        recovery_goal_seconds=GOAL_RECOVERY,
        threads=options.threads,
    )


if __name__ == "__main__":
    main()
