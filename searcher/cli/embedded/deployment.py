"""layout -> its programs, started, waited for, looked at and stopped.

`searcher up` and the demo use it, and tests as a library. What runs is in `programs`, where in `layout`; how programs
are kept alive is in `supervisor`.

    deployment = Deployment.for_recipe(Path("recipes/tiny.toml"), Path(".searcher"))
    with deployment.running():
        async with deployment.trainer() as trainer:
            ...
"""

import fcntl
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import Self

from searcher.cli.embedded import supervisor
from searcher.cli.embedded.indexes import IndexBuild, index_builds
from searcher.cli.embedded.layout import Layout
from searcher.cli.embedded.logs import tail
from searcher.cli.embedded.ports import holder, is_free
from searcher.cli.embedded.programs import programs_of
from searcher.cli.embedded.readiness import ProgramStatus, status_of
from searcher.cli.embedded.supervisor import Changes, Program, Supervisor
from searcher.clients.evaluator import EvaluatorClient
from searcher.clients.rollout import RolloutClient
from searcher.clients.trainer import TrainerClient
from searcher.contracts.errors import Conflict, NotFound, SearcherError
from searcher.servicekit.settings import SharedSettings

POLL_SECONDS = 0.25
SUPERVISORD_START_SECONDS = 20.0
START_SECONDS = 600.0
"""Importing vLLM and torch takes half a minute of CPU per process, and minutes where the machine is busy."""
ASK_SECONDS = 600.0
HOPELESS_RESTARTS = 3
"""A program that ended this often before it was ready once will not become ready by waiting."""

OnProgress = Callable[[list[ProgramStatus]], None]
"""What a wait reports to."""


class Deployment(Layout):
    """A layout with a life. Whether it runs is known from its state directory alone: any process may look or stop."""

    @cached_property
    def programs(self) -> tuple[Program, ...]:
        return programs_of(self)

    @cached_property
    def supervisor(self) -> Supervisor:
        return Supervisor(supervisor.socket_path(self.state_dir))

    # --- who asks -----------------------------------------------------------------------------------------------------

    def rollout(self) -> RolloutClient:
        return RolloutClient(self.url("rollout"), api_key=SharedSettings().api_key, timeout_seconds=ASK_SECONDS)

    def trainer(self) -> TrainerClient:
        return TrainerClient(self.url("trainer"), api_key=SharedSettings().api_key)

    def evaluator(self) -> EvaluatorClient:
        return EvaluatorClient(self.url("evaluator"), api_key=SharedSettings().api_key)

    # --- start, wait, stop --------------------------------------------------------------------------------------------

    def start(self, *, die_with_parent: bool = False) -> Changes:
        """Build what is missing and start what does not run; an equal deployment that runs is left alone.

        With `die_with_parent` everything ends when the calling thread does, even by kill -9.
        """
        if not self.engine_python.exists():
            raise NotFound(
                f"{self.engine_python}: no engine environment; run `make setup`, or set SEARCHER_ENGINE_PYTHON"
            )
        self.make_folders()
        with self._locked():
            builds = self.missing_indexes()
            for build in builds:
                build.run()
            config = supervisor.render_config(
                self.programs, state_dir=self.state_dir, cwd=self.root, socket=self.supervisor.socket
            )
            if self.is_up():
                self.save(config)
                return self._apply_config(indexes_are_new=bool(builds))
            self.check_ports(self.programs)
            self.save(config)
            self._spawn(die_with_parent=die_with_parent)
            return Changes(started=tuple(program.name for program in self.programs))

    def missing_indexes(self) -> list[IndexBuild]:
        """Indexes that are not there, or were built from another source or by another method."""
        return [build for build in index_builds(self) if not build.is_done()]

    def check_ports(self, programs: Sequence[Program]) -> None:
        """Raises Conflict that names the port, who holds it and what to do."""
        for program in programs:
            if program.port is not None and not is_free(program.port):
                raise Conflict(
                    f"port {program.port} ({program.name}) is taken by {holder(program.port)}; "
                    f"stop it, or take other ports: `searcher up --port-offset {self.port_offset + 100}`"
                )

    def wait_ready(
        self, on_progress: OnProgress = lambda rows: None, *, timeout_seconds: float = START_SECONDS
    ) -> None:
        """Raises SearcherError with the end of the log of a program that does not come up."""
        deadline = time.monotonic() + timeout_seconds
        pids = defaultdict[str, set[int]](set)
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
                    raise self._failed(row.name, "does not start")
            if time.monotonic() > deadline:
                first = waiting[0]
                raise self._failed(first.name, f"is not ready after {timeout_seconds:.0f} s ({first.reason})")
            time.sleep(POLL_SECONDS)

    def stop(self) -> bool:
        """End every process of the deployment, Redis last. False if none ran."""
        with self._locked():
            if not self.is_up():
                return False
            self.supervisor.shutdown(last="redis")
            return True

    @contextmanager
    def running(
        self, on_progress: OnProgress = lambda rows: None, *, timeout_seconds: float = START_SECONDS
    ) -> Iterator[Self]:
        """Started, ready, and stopped at the end, whatever happens between."""
        try:
            self.start(die_with_parent=True)
            self.wait_ready(on_progress, timeout_seconds=timeout_seconds)
            yield self
        finally:
            self.stop()

    # --- while it runs ------------------------------------------------------------------------------------------------

    def is_up(self) -> bool:
        return self.supervisor.is_running()

    def status(self) -> list[ProgramStatus]:
        """One row per program, in their order. Raises NotFound if the deployment does not run."""
        if not self.is_up():
            raise NotFound(f"nothing runs in {self.state_dir}; start it with `searcher up`")
        processes = {process.name: process for process in self.supervisor.processes()}
        known = [program for program in self.programs if program.name in processes]
        with ThreadPoolExecutor(max_workers=len(known) or 1) as pool:
            return list(pool.map(lambda program: status_of(program, processes[program.name]), known))

    def pid(self, program: str) -> int:
        """Raises NotFound if the program does not exist or does not run at this moment."""
        for process in self.supervisor.processes():
            if process.name == program and process.pid is not None:
                return process.pid
        raise NotFound(f"{program} does not run; programs are {', '.join(p.name for p in self.programs)}")

    def kill(self, program: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to one program's main process; supervisord starts it anew if it ends. Returns its old pid."""
        pid = self.pid(program)
        os.kill(pid, number)
        return pid

    # --- the steps of it ----------------------------------------------------------------------------------------------

    def _apply_config(self, *, indexes_are_new: bool) -> Changes:
        changes = self.supervisor.apply_config()
        if not indexes_are_new or "retriever" in changes.restarted:
            return changes
        self.supervisor.restart("retriever")
        return Changes(changes.started, (*changes.restarted, "retriever"), changes.stopped)

    def _spawn(self, *, die_with_parent: bool) -> None:
        supervisor.spawn(self.config_path, die_with_parent=die_with_parent)
        deadline = time.monotonic() + SUPERVISORD_START_SECONDS
        while not self.is_up():
            if time.monotonic() > deadline:
                raise SearcherError(f"supervisord did not start:\n{tail(self.log_path('supervisord'))}")
            time.sleep(0.05)

    def _failed(self, program: str, how: str) -> SearcherError:
        return SearcherError(f"{program} {how}; the end of its log:\n{tail(self.log_path(program))}")

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
