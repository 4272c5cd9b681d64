"""Twice the load that the service can carry, and what becomes of it.

    python -m benchmarks.retriever_overload [--quick]

Capacity: 64 connections in a closed loop. Then an open loop at twice that rate: Poisson arrivals, deadline 2 s, latency
counted from when a request should have been sent. Good is what is answered inside its deadline. Recovery: the time
after the last arrival until a request alone is answered within twice its usual time. A capacity spread (after against
before) above 0.15 says that neighbours took so much of the machine that it should be measured again.
"""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Overloaded:
    """What was measured in one service, in queries per second, bytes and seconds."""

    capacity_before: float
    capacity_after: float
    answers: list[Answer]
    recovery: float
    memory_before: float
    memory_after: float

    @property
    def capacity(self) -> float:
        return (self.capacity_before + self.capacity_after) / 2

    @property
    def lasted(self) -> float:
        return max(answer.at for answer in self.answers)


def measure(index_dir: Path, threads: int, asked: list[bytes], seconds: float, num_capacity: int) -> Overloaded:
    with Service(index_dir, threads=threads, cache_entries=0) as service:
        in_client_process(closed_loop, service.port, asked[:300], CONNECTIONS)
        _, alone = in_client_process(closed_loop, service.port, asked[:100], 1)
        usual = median(answer.seconds for answer in alone)

        def capacity() -> float:
            taken, _ = in_client_process(closed_loop, service.port, asked[:num_capacity], CONNECTIONS)
            return num_capacity / taken

        capacity()  # the first is too low: the machine wakes up
        before, memory_before = capacity(), service.metrics()[ANON]
        bodies = [asked[n % len(asked)] for n in range(int(2 * before * seconds))]
        answers, recovery = in_client_process(
            overload_and_recover, service.port, bodies, 2 * before, asked[-200:], usual
        )
        memory_after = service.metrics()[ANON]
        return Overloaded(before, capacity(), answers, recovery, memory_before, memory_after)


def kind_of(answer: Answer) -> str:
    if answer.status == 200:
        return "good" if answer.seconds <= DEADLINE_SECONDS else "late"
    return "refused" if answer.status == 503 and answer.retry_after else "anything else"


def main() -> None:
    options = arguments(__doc__)
    seconds, num_capacity = (10.0, 1_500) if options.quick else (60.0, 3_000)
    asked = [search_body(query) for query in questions()]
    found = measure(ensure_index(options.index), options.threads, asked, seconds, num_capacity)

    seconds_of: dict[str, list[float]] = {kind: [] for kind in ("good", "late", "refused", "anything else")}
    for answer in found.answers:
        seconds_of[kind_of(answer)].append(answer.seconds)
    offered = len(found.answers) / found.lasted
    rows: list[tuple[object, ...]] = [
        ("", "q/s", "p50 s", "p99 s"),
        ("capacity before", found.capacity_before, "", ""),
        ("offered", offered, "", ""),
    ]
    for kind, waited in seconds_of.items():
        rows.append((kind, len(waited) / found.lasted, *(percentile(waited, p) if waited else "" for p in (50, 99))))
    table([*rows, ("capacity after", found.capacity_after, "", "")])
    report(
        "retriever_overload",
        ratio=len(seconds_of["good"]) / found.lasted / found.capacity,
        goal=GOAL,
        seconds=round(found.lasted, 1),
        capacity_spread=round(abs(found.capacity_before - found.capacity_after) / found.capacity, 2),
        offered_over_capacity=round(offered / found.capacity, 2),
        late=len(seconds_of["late"]),
        refused=len(seconds_of["refused"]),
        neither_200_nor_503_with_retry_after=len(seconds_of["anything else"]),
        p99_of_good_seconds=round(percentile(seconds_of["good"], 99), 3),
        deadline_seconds=DEADLINE_SECONDS,
        own_memory_growth_mib=round((found.memory_after - found.memory_before) / 2**20, 1),
        own_memory_mib=round(found.memory_after / 2**20, 1),
        recovery_seconds=round(found.recovery, 3),
        recovery_goal_seconds=GOAL_RECOVERY,
        threads=options.threads,
    )


if __name__ == "__main__":
    main()
