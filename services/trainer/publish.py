"""Weights -> an immutable safetensors file with a version. Announcing it is left to the caller.

A version is a folder that appears by one rename and is never written again; its name holds the hash of its bytes.
"""

import hashlib
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from searcher.contracts.weights import WeightVersion, step_of

FILE = "model.safetensors"


class Publisher:
    """Writes the versions of one run and removes those that nobody will ask for."""

    def __init__(self, directory: Path, run_id: str, *, public_url: str | None, keep: int) -> None:
        self.directory, self.run_id, self.public_url, self.keep = directory, run_id, public_url, keep

    def write(self, weights: Mapping[str, Tensor], *, step: int) -> WeightVersion:
        """Writing the same weights of the same step again gives the version that exists."""
        partial = self.directory / f".partial-{self.run_id}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        sha256 = write_safetensors(weights, partial / FILE)
        num_bytes = (partial / FILE).stat().st_size
        version = WeightVersion(run_id=self.run_id, step=step, location="-", sha256=sha256, num_bytes=num_bytes)
        final = self.directory / version.name
        if final.exists():
            shutil.rmtree(partial)
        else:
            partial.rename(final)
            sync_directory(self.directory)
        return version.model_copy(update={"location": self._location(version, final / FILE)})

    def prune(self, current: WeightVersion, *, in_use: Collection[str] = ()) -> None:
        """Keep the newest versions up to the current one, and those in use by name.

        Later ones were published before a crash and are void.
        """
        steps = {path: step_of(path.name) for path in self._versions() if path.name not in in_use}
        older = sorted((path for path, step in steps.items() if step < current.step), key=lambda path: steps[path])
        stale = [path for path, step in steps.items() if step >= current.step and path.name != current.name]
        for path in older[: max(0, len(older) - (self.keep - 1))] + stale:
            shutil.rmtree(path)

    def _versions(self) -> list[Path]:
        return [
            path for path in self.directory.glob(f"{self.run_id}-*") if path.name[len(self.run_id) + 9 :][:1] == "-"
        ]

    def _location(self, version: WeightVersion, path: Path) -> str:
        if self.public_url is None:
            return path.resolve().as_uri()
        return f"{self.public_url.rstrip('/')}/v1/weights/{version.name}/{FILE}"


def write_safetensors(weights: Mapping[str, Tensor], path: Path) -> str:
    """Write to disk, durably; returns the file's sha256."""
    from safetensors.torch import save_file

    save_file(dict(weights), path, metadata={"format": "pt"})
    path.chmod(0o644)  # engines may run as somebody else
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_directory(directory: Path) -> None:
    """Make renames in this folder survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def export_model(weights: Mapping[str, Tensor], base: Path, target: Path) -> Path:
    """A complete Hugging Face model folder: the base model's config and tokenizer around the new weights."""
    partial = target.with_name(f".partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in base.iterdir():
        if file.is_file() and not _holds_weights(file.name):
            shutil.copy2(file, partial / file.name)
    write_safetensors(weights, partial / FILE)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    sync_directory(target.parent)
    return target


def _holds_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".index.json"))
