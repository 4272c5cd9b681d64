"""Requests that fail: among 10,000 at once, while instances end and start, and while indexes are swapped. Goal: none.

    python -m benchmarks.retriever_drain [--quick]

At once: 10,000 requests (2,000 with --quick) on as many connections, sent before the first is answered, each of which
may take ten minutes. Drain: two instances under 64 connections; a client that asks /readyz of both every 50 ms and
sends to those that are ready, as a load balancer does; each instance in turn gets SIGTERM in the middle of the load
(drain delay 1 s), must exit with 0, and is started again. Swap: one instance under 64 connections; POST /v1/index goes
back and forth between two builds, and a `current` link is changed. A failure is any answer but 200, or none.
"""

import asyncio
import itertools
import json
import os
import resource
import shutil
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.measure import report, table
from benchmarks.retriever_service import (
    Connection,
    Service,
    arguments,
    ensure_index,
    in_client_process,
    questions,
    search_body,
)

T = TypeVar("T")

CONNECTIONS = 64


def all_at_once(port: int, bodies: Sequence[bytes]) -> Counter[str]:
    """Outcomes. Every request is on its way before the first answer is read."""

    async def run() -> Counter[str]:
        gate, outcomes = asyncio.Barrier(len(bodies)), Counter[str]()
        connecting = asyncio.Semaphore(500)

        async def ask(body: bytes) -> None:
            connection = Connection(port)
            async with connecting:
                await connection.open()
            await gate.wait()
            try:
                status, _, _ = await connection.post(body, headers="X-Request-Timeout: 600\r\n")
                outcomes[str(status)] += 1
            except OSError as error:
                outcomes[type(error).__name__] += 1
            connection.close()

        await asyncio.gather(*map(ask, bodies))
        return outcomes

    return _uvloop(run)


def follow_readiness(
    ports: Sequence[int], bodies: Sequence[bytes], seconds: float
) -> tuple[Counter[str], Counter[str]]:
    """Outcomes, and answers per index, of a closed loop that lasts `seconds`."""

    async def run() -> tuple[Counter[str], Counter[str]]:
        ready, outcomes, indexes = set(ports), Counter[str](), Counter[str]()
        ends = time.perf_counter() + seconds
        endless = itertools.cycle(bodies)
        turns = itertools.count()

        async def probe(port: int) -> None:
            while time.perf_counter() < ends:
                (ready.add if await _is_ready(port) else ready.discard)(port)
                await asyncio.sleep(0.05)

        async def talk() -> None:
            connections = {port: Connection(port) for port in ports}
            while time.perf_counter() < ends:
                if not ready:
                    await asyncio.sleep(0.01)
                    continue
                candidates = sorted(ready)
                connection = connections[candidates[next(turns) % len(candidates)]]
                try:
                    status, _, content = await connection.post(next(endless))
                    outcomes[str(status)] += 1
                    if status == 200:
                        indexes[json.loads(content)["index"]] += 1
                except OSError as error:
                    outcomes[type(error).__name__] += 1
                    connection.close()
            for connection in connections.values():
                connection.close()

        await asyncio.gather(*map(probe, ports), *(talk() for _ in range(CONNECTIONS)))
        return outcomes, indexes

    return _uvloop(run)


async def _is_ready(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n")
        answered = await reader.readline()
        writer.close()
    except OSError:
        return False
    return b" 200 " in answered


def _uvloop(run: Callable[[], Coroutine[Any, Any, T]]) -> T:
    import uvloop

    return uvloop.run(run())


def beside(work: Callable[[], None], measured: Callable[[], T]) -> T:
    """What `measured` gives while `work` goes on. Raises what `work` raised."""
    problems: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    result = measured()
    thread.join()
    if problems:
        raise problems[0]
    return result


def another_build(index_dir: Path, folder: Path) -> Path:
    """The same index under another identity: its manifest names another source."""
    shutil.copytree(index_dir, folder, copy_function=os.link)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["source"]["name"] = "another build"
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def swap(port: int, folder: Path) -> None:
    body = json.dumps({"folder": str(folder)}).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer admin"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/index", body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.status == 200


def main() -> None:
    options = arguments(__doc__)
    index_dir = ensure_index(options.index).absolute()
    num_at_once, seconds, num_swaps = (2_000, 12.0, 4) if options.quick else (10_000, 40.0, 10)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    asked = [search_body(query) for query in questions()]

    at_once, at_once_seconds = measure_at_once(index_dir, options.threads, asked[:num_at_once])
    drained, exits = measure_drains(index_dir, asked, seconds)
    swapped = measure_swaps(index_dir, options.threads, asked, seconds, num_swaps)

    outcomes = {f"{num_at_once} at once": at_once, "two drains and restarts": drained, "swaps": swapped.outcomes}
    failures = {name: counted.total() - counted["200"] for name, counted in outcomes.items()}
    exits.append(swapped.exit_code)
    table([("", "requests", "failed"), *((name, outcomes[name].total(), failures[name]) for name in outcomes)])
    for name in outcomes:
        if failures[name]:
            print(name, dict(outcomes[name]))
    report(
        "retriever_drain",
        ratio=float(sum(failures.values()) + sum(code != 0 for code in exits)),
        goal=0.0,
        failed=failures,
        at_once_seconds=round(at_once_seconds, 1),
        exit_codes=exits,
        swaps=swapped.num_swaps,
        answers_per_index=sorted(swapped.answers_per_index.values()),
    )


def measure_at_once(index_dir: Path, threads: int, bodies: Sequence[bytes]) -> tuple[Counter[str], float]:
    """Outcomes, and seconds until the last."""
    with Service(index_dir, threads=threads, cache_entries=0) as service:
        began = time.perf_counter()
        return in_client_process(all_at_once, service.port, bodies), time.perf_counter() - began


def measure_drains(index_dir: Path, bodies: Sequence[bytes], seconds: float) -> tuple[Counter[str], list[int]]:
    """Outcomes, and the exit codes of all instances."""
    exits: list[int] = []
    instances = [Service(index_dir, threads=1, cache_entries=0, drain_seconds=1) for _ in range(2)]
    ports = [instance.port for instance in instances]

    def restart_each() -> None:
        for number, instance in enumerate(instances):
            time.sleep(seconds / 8)
            exits.append(instance.stop())
            instances[number] = Service(index_dir, threads=1, cache_entries=0, drain_seconds=1, port=instance.port)

    outcomes, _ = beside(restart_each, lambda: in_client_process(follow_readiness, ports, bodies, seconds))
    return outcomes, exits + [instance.stop() for instance in instances]


@dataclass(frozen=True)
class Swapped:
    outcomes: Counter[str]
    answers_per_index: Counter[str]
    num_swaps: int
    exit_code: int


def measure_swaps(index_dir: Path, threads: int, bodies: Sequence[bytes], seconds: float, num_swaps: int) -> Swapped:
    with tempfile.TemporaryDirectory(dir=index_dir.parent) as scratch:
        place = Path(scratch)
        (place / "admin").write_text("admin")
        os.environ["SEARCHER_ADMIN_KEY_FILE"] = str(place / "admin")
        shutil.copytree(index_dir, place / "one", copy_function=os.link)
        builds = [place / "one", another_build(index_dir, place / "two")]
        link = place / "current"
        link.symlink_to("one")
        with Service(place, threads=threads, cache_entries=1_000, watch_seconds=0.2) as service:

            def swap_often() -> None:
                for number in range(num_swaps):
                    time.sleep(seconds / 3 / num_swaps)
                    if number % 2:
                        swap(service.port, builds[number // 2 % 2])
                    else:
                        (place / "next").symlink_to(builds[(number // 2 + 1) % 2])
                        (place / "next").rename(link)

            outcomes, answers_per_index = beside(
                swap_often, lambda: in_client_process(follow_readiness, [service.port], bodies, seconds / 2)
            )
            swaps = service.metrics()['searcher_retriever_index_swaps_total{outcome="swapped"}']
            return Swapped(outcomes, answers_per_index, int(swaps), service.stop())


if __name__ == "__main__":
    main()
