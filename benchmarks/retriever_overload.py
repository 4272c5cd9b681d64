"""Twice the load that the service can carry, and what becomes of it.

    python -m benchmarks.retriever_overload [--quick]

Capacity: 64 connections in a closed loop. Then an open loop at twice that rate: Poisson arrivals, deadline 2 s, latency
counted from when a request should have been sent. Good is what is answered inside its deadline. Recovery: the time
after the last arrival until a request alone is answered within twice its usual time.

Capacity and overload in turns, in one service, since a machine's speed may drift by more than what is measured: each
round's goodput is held against the mean of the capacities before and after it. A capacity spread above 0.15 says that
neighbours took so much of the machine that it should be measured again.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

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
class Round:
    """Queries per second, seconds, and MiB of the service's own memory."""

    capacity_before: float
    capacity_after: float
    answers: list[Answer]
    recovery: float
    memory: tuple[float, float]
    """Before and after."""

    @property
    def capacity(self) -> float:
        return (self.capacity_before + self.capacity_after) / 2

    @property
    def lasted(self) -> float:
        return max(answer.at for answer in self.answers)

    @property
    def offered(self) -> float:
        return len(self.answers) / self.lasted

    @property
    def goodput(self) -> float:
        return sum(kind_of(answer) == "good" for answer in self.answers) / self.lasted

    @property
    def ratio(self) -> float:
        return self.goodput / self.capacity


def kind_of(answer: Answer) -> str:
    if answer.status == 200:
        return "good" if answer.seconds <= DEADLINE_SECONDS else "late"
    return "refused" if answer.status == 503 and answer.retry_after else "anything else"


def measure(
    service: Service, asked: list[bytes], *, num_rounds: int, seconds: float, num_capacity: int
) -> Iterator[Round]:
    in_client_process(closed_loop, service.port, asked[:300], CONNECTIONS)
    _, alone = in_client_process(closed_loop, service.port, asked[:100], 1)
    usual = median(answer.seconds for answer in alone)

    def capacity() -> float:
        taken, _ = in_client_process(closed_loop, service.port, asked[:num_capacity], CONNECTIONS)
        return num_capacity / taken

    def memory() -> float:
        return service.metrics()[ANON] / 2**20

    capacity()  # the first is too low: the machine wakes up
    before = capacity()
    for _ in range(num_rounds):
        memory_before = memory()
        bodies = [asked[n % len(asked)] for n in range(int(2 * before * seconds))]
        answers, recovery = in_client_process(
            overload_and_recover, service.port, bodies, 2 * before, asked[-200:], usual
        )
        memory_after, after = memory(), capacity()
        yield Round(before, after, answers, recovery, (memory_before, memory_after))
        before = after


def tell(rounds: list[Round], *, threads: int) -> None:
    seconds_of: dict[str, list[float]] = {kind: [] for kind in ("good", "late", "refused", "anything else")}
    for answer in chain.from_iterable(r.answers for r in rounds):
        seconds_of[kind_of(answer)].append(answer.seconds)
    table(
        [
            ("round", "capacity q/s", "after", "offered q/s", "good q/s", "ratio", "recovery s", "MiB", "after"),
            *(
                (n, r.capacity_before, r.capacity_after, r.offered, r.goodput, r.ratio, r.recovery, *r.memory)
                for n, r in enumerate(rounds, start=1)
            ),
        ]
    )
    print()
    table(
        [
            ("", "requests", "p50 s", "p99 s"),
            *(
                (kind, len(waited), *(percentile(waited, p) if waited else "" for p in (50, 99)))
                for kind, waited in seconds_of.items()
            ),
        ]
    )
    capacities = [rounds[0].capacity_before, *(r.capacity_after for r in rounds)]
    report(
        "retriever_overload",
        ratio=median([r.ratio for r in rounds]),
        goal=GOAL,
        ratio_per_round=[round(r.ratio, 3) for r in rounds],
        seconds_per_round=round(median([r.lasted for r in rounds]), 1),
        capacity_spread=round((max(capacities) - min(capacities)) / median(capacities), 2),
        offered_over_capacity=round(median([r.offered / r.capacity for r in rounds]), 2),
        late=len(seconds_of["late"]),
        refused=len(seconds_of["refused"]),
        neither_200_nor_503_with_retry_after=len(seconds_of["anything else"]),
        p99_of_good_seconds=round(percentile(seconds_of["good"], 99), 3),
        deadline_seconds=DEADLINE_SECONDS,
        own_memory_growth_mib=round(rounds[-1].memory[1] - rounds[0].memory[0], 1),
        own_memory_mib=round(rounds[-1].memory[1], 1),
        recovery_seconds=round(max(r.recovery for r in rounds), 3),
        recovery_goal_seconds=GOAL_RECOVERY,
        threads=threads,
    )


def main() -> None:
    options = arguments(__doc__)
    num_rounds, seconds, num_capacity = (2, 10.0, 1_500) if options.quick else (3, 60.0, 3_000)
    asked = [search_body(query) for query in questions()]
    with Service(ensure_index(options.index), threads=options.threads, cache_entries=0) as service:
        found = measure(service, asked, num_rounds=num_rounds, seconds=seconds, num_capacity=num_capacity)
        tell(list(found), threads=options.threads)


if __name__ == "__main__":
    main()
