"""trainer -> engines: an immutable version of the policy's weights."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from searcher.contracts.base import Contract, Name

Purpose = Literal["training", "evaluation"]
"""What engines are there for. Those of evaluation hold the version that is evaluated, whatever training does."""


class WeightVersion(Contract):
    """One published safetensors file. Never overwritten; verified by sha256 before an engine loads it."""

    run_id: Name
    step: int = Field(ge=0)
    """Optimiser steps taken; 0 is the model the run started from."""
    location: str
    """`file:///…/model.safetensors` or `http(s)://…/v1/weights/{version}/model.safetensors`."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    num_bytes: int = Field(ge=1)

    @property
    def name(self) -> str:
        """How engines and trajectories refer to it, e.g. `demo-1f0c9a2b-000042`.

        The hash is part of it: a step that is repeated after a crash need not give the same bytes.
        """
        return f"{self.run_id}-{self.sha256[:8]}-{self.step:06d}"


def step_of(version: str) -> int:
    """`demo-1f0c9a2b-000042` -> 42; -1 for weights that no run published (an engine's start model)."""
    _, _, step = version.rpartition("-")
    return int(step) if step.isdigit() and len(step) >= 6 else -1


class EngineState(StrEnum):
    READY = "ready"
    """Holds the wanted weights and answers."""
    UPDATING = "updating"
    """Paused while weights are replaced; no turn is routed to it."""
    DOWN = "down"
    """Does not answer; asked again every reconcile interval."""


class EngineStatus(Contract):
    """One row of `GET /v1/weights`."""

    url: str
    state: EngineState
    version: str
    in_flight: int


class WeightsStatus(Contract):
    wanted: WeightVersion | None
    engines: tuple[EngineStatus, ...]
