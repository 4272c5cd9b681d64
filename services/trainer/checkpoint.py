"""A run's state -> checkpoints/step-000120, whole or not at all, and back.

Files are written into a hidden folder, listed with their sha256 in a manifest, synced, and appear by one rename. What
does not verify against its manifest is not a checkpoint.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searcher.contracts.run import Checkpoint
from searcher.files import file_sha256

MANIFEST = "manifest.json"
STATE = "state.json"


@dataclass(frozen=True)
class Found:
    """A checkpoint whose every file is as it was written."""

    path: Path
    step: int
    state: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run; `keep` newest stay."""

    def __init__(self, directory: Path, *, keep: int = 1) -> None:
        self.directory, self.keep = directory, keep

    def partial(self, step: int) -> Path:
        """Where all processes write before the commit."""
        return self.directory / f".partial-{_name(step)}"

    def final(self, step: int) -> Path:
        return self.directory / _name(step)

    def begin(self, step: int) -> None:
        for left_over in self.directory.glob(".partial-*"):
            shutil.rmtree(left_over)
        self.partial(step).mkdir(parents=True)

    def commit(self, step: int, state: dict[str, Any]) -> Path:
        """From here on it exists; older ones beyond `keep` are removed."""
        partial, final = self.partial(step), self.final(step)
        (partial / STATE).write_text(json.dumps(state))
        files = {
            str(path.relative_to(partial)): file_sha256(path) for path in sorted(partial.rglob("*")) if path.is_file()
        }
        (partial / MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=1))
        for path in [*partial.rglob("*"), partial]:
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(self.directory)
        # Later ones were damaged, or this run would have continued from them.
        later = [path for path in self.paths() if step_of(path) > step]
        for path in later + [path for path in self.paths() if path not in later][: -self.keep]:
            shutil.rmtree(path)
        return final

    def newest(self, on_damaged: Callable[[Path, str], None]) -> Found | None:
        """The newest one that verifies. `on_damaged` hears of each newer one that does not, and why."""
        for path in reversed(self.paths()):
            try:
                return verified(path)
            except (OSError, ValueError, KeyError) as error:
                on_damaged(path, str(error))
        return None

    def oldest_state(self) -> dict[str, Any]:
        """What the oldest kept one needs is what must not be forgotten elsewhere."""
        state: dict[str, Any] = json.loads((self.paths()[0] / STATE).read_text())
        return state

    def paths(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.directory.glob("step-*"))

    def rows(self) -> list[Checkpoint]:
        rows = []
        for path in self.paths():
            try:
                num_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                rows.append(Checkpoint(step=step_of(path), path=str(path), num_bytes=num_bytes))
            except FileNotFoundError:  # removed by the training process while we looked
                continue
        return rows


def verified(path: Path) -> Found:
    """Raises ValueError, KeyError or OSError that says what is damaged."""
    manifest = json.loads((path / MANIFEST).read_text())
    for name, sha256 in manifest["files"].items():
        if file_sha256(path / name) != sha256:
            raise ValueError(f"{name} does not match its sha256")
    return Found(path, manifest["step"], json.loads((path / STATE).read_text()))


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def save_randomness(path: Path) -> None:
    """The random generators of this process."""
    import numpy as np
    import torch

    algorithm, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (algorithm, [int(key) for key in keys], position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    torch.save(state, path)


def load_randomness(path: Path) -> None:
    import numpy as np
    import torch

    state = torch.load(path, weights_only=True)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
