"""What the retriever's serving benchmarks share: real passages and questions, the service as a process, and clients.

Clients live in a process of their own: they must not take the interpreter from the service, nor from the raw loop.
"""

import argparse
import asyncio
import gzip
import json
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from benchmarks.measure import free_port

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("SEARCHER_DATA", ROOT.parent / "shared" / "data"))
INDEX = ROOT / "build" / "bench-index"


def arguments(doc: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter, and noisier")
    parser.add_argument("--index", type=Path, default=INDEX, help="built from the real passages if it is not there")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the engine")
    return parser.parse_args()


def ensure_index(folder: Path) -> Path:
    """A flat index with MiniLM over 15,779 real passages; minutes of encoding, once."""
    if not (folder / "manifest.json").is_file():
        command = [sys.executable, "-m", "services.retriever.building", str(DATA / "multihop" / "corpus.jsonl.gz")]
        command += ["--out", str(folder), "--kind", "flat", "--encoder", "minilm"]
        subprocess.run([*command, "--encoder-cache", str(ROOT / "build" / "encoders")], check=True, cwd=ROOT)
    return folder


def questions() -> list[str]:
    """Distinct real questions, always in the same order."""
    found: dict[str, None] = {}
    for path in sorted(
        [
            *DATA.glob("r1_searcher/training_set/*.jsonl"),
            *DATA.glob("r1_searcher/eval_set/*.jsonl"),
            *DATA.glob("multihop/*_questions.jsonl.gz"),
            *DATA.glob("singlehop/*.jsonl.gz"),
        ]
    ):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            found.update((json.loads(line)["question"].strip(), None) for line in lines)
    ordered = [question for question in found if question]
    if not ordered:
        raise SystemExit(f"no questions in {DATA}; name their folder in SEARCHER_DATA")
    random.Random(0).shuffle(ordered)
    return ordered


# ---------------------------------------------------------------------------------------------------------------------
# The service


class Service:
    """`python -m services.retriever` on a free port."""

    def __init__(self, index_dir: Path, *, threads: int, port: int | None = None, **settings: object) -> None:
        self.port = port or free_port()
        variables = {"index_dir": index_dir.absolute(), "port": self.port, "threads": threads, **settings}
        environment = os.environ | {f"RETRIEVER_{name.upper()}": str(value) for name, value in variables.items()}
        environment.pop("SEARCHER_API_KEY_FILE", None)
        self.process = subprocess.Popen([sys.executable, "-m", "services.retriever"], env=environment, cwd=ROOT)
        while not self.is_ready():
            if self.process.poll() is not None:
                raise SystemExit(f"the retriever ended with {self.process.returncode}")
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def metrics(self) -> dict[str, float]:
        """By the name in the exposition, labels and all."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as response:
            lines = response.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout=120)


def mean_batch(before: dict[str, float], after: dict[str, float]) -> float:
    name = "searcher_retriever_batch_queries"
    return (after[f"{name}_sum"] - before[f"{name}_sum"]) / (after[f"{name}_count"] - before[f"{name}_count"])


# ---------------------------------------------------------------------------------------------------------------------
# Clients


@dataclass(frozen=True)
class Answer:
    status: int
    """0: no answer."""
    seconds: float
    """From when it was sent, or, in an open loop, from when it should have been."""
    at: float
    """When it was sent or should have been, in seconds since the load began."""
    retry_after: bool = False
    body: bytes = b""


class Worker:
    """A process of its own. What it is given and what it gives must be picklable; what it caches, it keeps."""

    def __enter__(self) -> Self:
        self._pool = multiprocessing.get_context("spawn").Pool(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()

    def run(self, work: Callable[..., T], *parameters: Any) -> T:
        return self._pool.apply(work, parameters)


def in_client_process(work: Callable[..., T], *parameters: Any) -> T:
    """Run it in a fresh process."""
    with Worker() as worker:
        return worker.run(work, *parameters)


def search_body(query: str, k: int = 3) -> bytes:
    return json.dumps({"queries": [query], "k": k}).encode()


class Connection(asyncio.Protocol):
    """One kept HTTP connection, with as little as a client can do: what it costs, it takes from the service."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._transport: asyncio.WriteTransport | None = None

    async def open(self) -> None:
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self.port)

    async def post(self, body: bytes, path: str = "/v1/search", headers: str = "") -> tuple[int, bool, bytes]:
        """Status, whether there was a Retry-After, and the body. Raises OSError."""
        if self._transport is None:  # the first request, or the service closed it meanwhile, as every client checks
            await self.open()
        assert self._transport is not None
        head = f"POST {path} HTTP/1.1\r\nHost: s\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        self._received = b""
        self._answered: asyncio.Future[tuple[bytes, bytes]] = asyncio.get_running_loop().create_future()
        self._transport.write(head.encode() + body)
        answered, content = await self._answered
        if b"connection: close" in answered:
            self.close()
        return int(answered[9:12]), b"\r\nretry-after:" in answered, content

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is one in all but name
        self._answered = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if (whole := _whole(self._received)) and not self._answered.done():
            self._answered.set_result(whole)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if not self._answered.done():
            self._answered.set_exception(error if isinstance(error, OSError) else ConnectionResetError("hung up"))
            self._answered.exception()  # nobody may wait for it


def _whole(received: bytes) -> tuple[bytes, bytes] | None:
    """Head, in small letters, and content of a response; None while some of it is missing."""
    head, end, content = received.partition(b"\r\n\r\n")
    if not end:
        return None
    head = head.lower()
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return (head, content) if len(content) == length else None


def one_by_one(port: int, bodies: Sequence[bytes]) -> list[float]:
    """Seconds of each request until its last byte is there, on one connection. Blocking, and the clock stops before the
    answer is looked at: a client's event loop and parser would count as the service's."""
    seconds = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for body in bodies:
            request = f"POST /v1/search HTTP/1.1\r\nHost: s\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            received = b""
            began = time.perf_counter()
            connection.sendall(request)
            while (whole := _whole(received)) is None:
                received += connection.recv(65_536)
                ended = time.perf_counter()
            assert whole[0].startswith(b"http/1.1 200 "), whole
            seconds.append(ended - began)
    return seconds


def closed_loop(port: int, bodies: Sequence[bytes], connections: int) -> tuple[float, list[Answer]]:
    """Each connection sends its next request when the last is answered. Seconds in all, and the answers."""

    async def run() -> tuple[float, list[Answer]]:
        waiting, answers, began = iter(bodies), list[Answer](), time.perf_counter()

        async def talk() -> None:
            connection = Connection(port)
            for body in waiting:
                sent = time.perf_counter()
                status, retry_after, _ = await connection.post(body)
                answers.append(Answer(status, time.perf_counter() - sent, sent - began, retry_after))
            connection.close()

        await asyncio.gather(*(talk() for _ in range(connections)))
        return time.perf_counter() - began, answers

    return _run(run())


def open_loop(port: int, bodies: Sequence[bytes], rate: float, deadline_seconds: float) -> list[Answer]:
    """Requests leave when they are due, whatever became of earlier ones: Poisson arrivals of `rate` a second."""

    async def run() -> list[Answer]:
        gaps, answers, idle = random.Random(1), list[Answer](), list[Connection]()
        headers = f"X-Request-Timeout: {deadline_seconds}\r\n"

        async def ask(body: bytes, due: float) -> None:
            connection = idle.pop() if idle else Connection(port)
            try:
                status, retry_after, _ = await connection.post(body, headers=headers)
            except OSError:
                connection.close()
                answers.append(Answer(0, time.perf_counter() - due, due - began))
                return
            idle.append(connection)
            answers.append(Answer(status, time.perf_counter() - due, due - began, retry_after))

        due = began = time.perf_counter()
        tasks = []
        for body in bodies:
            due += gaps.expovariate(rate)
            if (left := due - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            tasks.append(asyncio.create_task(ask(body, due)))
        await asyncio.gather(*tasks)
        for connection in idle:
            connection.close()
        return answers

    return _run(run())


def _run(work: Any) -> Any:
    import uvloop

    return uvloop.run(work)
