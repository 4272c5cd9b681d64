"""runs/<id>: everything a run leaves behind, readable while it runs and after a crash. Plain files, no torch.

run.json        the controller's record: state, restarts      recipe.json  every number of the experiment
metrics.jsonl   one line a step                               events.jsonl what happened, append-only
trajectories/   step-000123.jsonl.zst                         checkpoints/ step-000120/
evaluations/    step-000120.json                              export/      step-000120/  a Hugging Face model
weights/        published versions                            tensorboard/
lock            held by the training process                  ending.json  why it ended by itself
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

import structlog

from searcher.contracts.base import Contract
from searcher.contracts.errors import Conflict
from searcher.contracts.recipe import Recipe
from searcher.contracts.run import RunState

log = structlog.get_logger()


class Outcome(StrEnum):
    DONE = "done"
    """The curriculum ended."""
    STOPPED = "stopped"
    """Asked to stop; there is a checkpoint."""
    REFUSED = "refused"
    """The recipe or its files are wrong: starting again would not help."""


class Ending(Contract):
    """ending.json: written by a training process that ends by itself, absent after a crash."""

    outcome: Outcome
    error: str | None = None


class RunRecord(Contract):
    """run.json: what the controller must not forget."""

    run_id: str
    state: RunState
    restarts: int = 0
    error: str | None = None
    created_at: str


class RunDirectory:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_id = path.name
        self.metrics_file = path / "metrics.jsonl"
        self.events_file = path / "events.jsonl"
        self.checkpoints = path / "checkpoints"

    @property
    def exists(self) -> bool:
        return (self.path / "run.json").exists()

    @property
    def record(self) -> RunRecord:
        return RunRecord.model_validate_json((self.path / "run.json").read_text())

    @record.setter
    def record(self, record: RunRecord) -> None:
        write_atomically(self.path / "run.json", record.model_dump_json(indent=1))

    @property
    def recipe(self) -> Recipe:
        return Recipe.model_validate_json((self.path / "recipe.json").read_text())

    @property
    def ending(self) -> Ending | None:
        file = self.path / "ending.json"
        return Ending.model_validate_json(file.read_text()) if file.exists() else None

    @ending.setter
    def ending(self, ending: Ending | None) -> None:
        file = self.path / "ending.json"
        if ending is None:
            file.unlink(missing_ok=True)
        else:
            write_atomically(file, ending.model_dump_json())

    def create(self, recipe: Recipe) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "recipe.json", recipe.model_dump_json(indent=1))
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.record = RunRecord(run_id=self.run_id, state=RunState.RUNNING, created_at=now)

    def event(self, name: str, **fields: Any) -> None:
        """Logged, and kept with the run."""
        log.info(name, run=self.run_id, **fields)
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": name, **fields}
        with self.events_file.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def write_metrics(self, line: dict[str, Any]) -> None:
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self, *, after_step: int = -1) -> list[dict[str, Any]]:
        return [line for line in read_lines(self.metrics_file) if line["step"] > after_step]

    def last_metrics(self) -> dict[str, Any]:
        """The newest line; empty before the first."""
        return next(iter(reversed(_tail(self.metrics_file))), {})

    def forget_after(self, step: int) -> None:
        """Drop what was recorded after this step: it is about to happen again, and curves must not fold back."""
        kept = [line for line in read_lines(self.metrics_file) if line["step"] <= step]
        write_atomically(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One training process per run. Raises Conflict. The file holds its process id, for signals."""
        with (self.path / "lock").open("a+") as file:
            if not _flock(file, patience_seconds=10.0):
                raise Conflict(f"run {self.run_id} is being trained by another process")
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def process_id(self) -> int | None:
        """Of the training process that talks to Redis; None while there is none."""
        text = (self.path / "lock").read_text() if (self.path / "lock").exists() else ""
        return int(text) if text else None

    def clear_process_id(self) -> None:
        if (self.path / "lock").exists():
            os.truncate(self.path / "lock", 0)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Whole lines only: the last one may be half written."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().split("\n")[:-1] if line]


def write_atomically(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    with partial.open("w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(file)


def _flock(file: TextIO, *, patience_seconds: float) -> bool:
    """A predecessor that was just killed may need a moment to be gone."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)


def _tail(file: Path, num_bytes: int = 65_536) -> list[dict[str, Any]]:
    """The whole lines among the last bytes of a file."""
    if not file.exists():
        return []
    with file.open("rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, size - num_bytes))
        lines = handle.read().decode(errors="replace").split("\n")[:-1]
    return [json.loads(line) for line in (lines if size <= num_bytes else lines[1:]) if line]
