"""anyone <-> trainer: training runs."""

from enum import StrEnum

from pydantic import Field

from searcher.contracts.base import Contract, Name
from searcher.contracts.recipe import Recipe


class RunRequest(Contract):
    """`POST /v1/runs`. 409 if the run exists, unless `resume` is true."""

    run_id: Name
    recipe: Recipe
    resume: bool = Field(default=False)
    """Continue from the newest checkpoint of an existing run of the same recipe."""


class RunState(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"
    """On request; can be resumed."""
    DONE = "done"
    FAILED = "failed"
    """Crashed more often than the restart budget allows, or refused its recipe; `error` says why."""


class RunStatus(Contract):
    run_id: str
    state: RunState
    stage: str = ""
    step: int = 0
    max_steps: int
    """Upper bound; a stage may end early by its `until` rule."""
    restarts: int = 0
    error: str | None = None
    metrics: dict[str, float] = {}
    """The newest line of metrics.jsonl."""


class Checkpoint(Contract):
    """One row of `GET /v1/runs/{id}/checkpoints`."""

    step: int
    path: str
    num_bytes: int
