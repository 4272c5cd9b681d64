"""Rollouts -> a file that survives a kill: what was asked and answered, one line each, on disk before it counts.

The first line says under which settings the questions are asked. A journal of other settings is never gone on with: its
counts would mean something else.
"""

import fcntl
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from pydantic import Field, ValidationError

from searcher.contracts.base import Contract
from searcher.contracts.errors import Conflict, InvalidInput
from searcher.contracts.question import RolloutPlan


class Correct(StrEnum):
    """Which figure of a score decides whether an answer is right."""

    COVER_EM = "cover_em"
    EM = "em"
    F1 = "f1"


class Asking(Contract):
    """Everything that a label depends on, besides the retriever's index."""

    candidates: str
    candidates_sha256: str
    corpus: str
    rollouts: int = Field(ge=1)
    """A question is asked this often at most."""
    correct: Correct
    at_least: float
    """An answer is right if its figure is at least this."""
    rules: str
    seed: int
    plan: RolloutPlan
    weights: str
    """The version that all rollouts come from."""
    recorded_in: str | None = None
    """The field whose recorded answers stood for rollouts; None: rollouts were asked."""


class Attempt(Contract):
    """One rollout of one question."""

    id: str
    attempt: int = Field(ge=1)
    correct: bool
    figure: float
    """What `Asking.correct` names."""
    answer: str | None


class Journal:
    """One selection at a time; everybody else may read it meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asking: Asking | None = None
        """None until the first line is there."""
        self.attempts: dict[str, list[Attempt]] = {}
        """By question id, in order."""
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        """Raises Conflict if another process writes it, InvalidInput for a line that is no journal's."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as on_error:
            file = on_error.enter_context(self.path.open("a+b"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(f"{self.path}: another selection is writing it") from None
            self._read(file)
            on_error.pop_all()
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    def start(self, asking: Asking) -> None:
        """Go on under these settings. Raises Conflict that names what was different."""
        if self.asking is None:
            self._append([asking])
            self.asking = asking
        changes = differences(self.asking, asking)
        if changes:
            raise Conflict(
                f"{self.path} was written under other settings: {'; '.join(changes)}. Give it the old ones, choose "
                "another --out, or delete the journal to ask everything anew"
            )

    def add(self, attempts: Sequence[Attempt]) -> None:
        """Return when they are on disk."""
        self._append(attempts)
        for attempt in attempts:
            self._count(attempt)

    def _append(self, lines: Sequence[Contract]) -> None:
        assert self._file is not None, "a journal is written inside its `with`"
        self._file.write("".join(line.model_dump_json() + "\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, file: BinaryIO) -> None:
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            file.truncate(len(whole))  # a kill in the middle of a line: that rollout was never counted
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                if number == 1:
                    self.asking = Asking.model_validate_json(line)
                else:
                    self._count(Attempt.model_validate_json(line))
            except (ValidationError, ValueError) as error:
                raise InvalidInput(f"{self.path}:{number}: not a line of a selection's journal: {error}") from None

    def _count(self, attempt: Attempt) -> None:
        known = self.attempts.setdefault(attempt.id, [])
        if attempt.attempt != len(known) + 1:
            raise ValueError(f"question {attempt.id!r}: attempt {attempt.attempt} follows {len(known)}")
        known.append(attempt)


def differences(old: Asking, new: Asking) -> list[str]:
    """`plan.temperature was 1.0, is 0.7`, one for each value that differs."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return [
        f"{name} was {json.dumps(before.get(name))}, is {json.dumps(after.get(name))}"
        for name in before | after
        if before.get(name) != after.get(name)
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
