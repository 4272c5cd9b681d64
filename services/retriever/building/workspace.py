"""Where an index is built: beside its place, one builder at a time, and gone on with after a kill."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from searcher.contracts.errors import InvalidInput
from services.retriever.index.manifest import MANIFEST_FILE, Manifest, read_manifest, verify

REQUEST_FILE, STAGES_FILE = "request.json", "stages.json"


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def complete_index(folder: Path) -> Manifest | None:
    try:
        manifest = read_manifest(folder)
        verify(folder, manifest)
    except InvalidInput:
        return None
    return manifest


def refuse_other_content(out: Path) -> None:
    if out.exists() and not (out / MANIFEST_FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInput(f"out: {out} exists and is not an index; name another folder")


@contextmanager
def only_builder(out: Path) -> Iterator[None]:
    """Builders of one folder wait for each other; the second finds it done. The lock dies with its process."""
    with (out.parent / f".{out.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def building_folder(out: Path, request_sha256: str) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end of the block.

    One that an interrupted build of the same request left is gone on with. Where the input is at fault there is nothing
    to go on with, and it goes.
    """
    building, old = (out.parent / f".{out.name}.{state}" for state in ("building", "old"))
    remove(old)
    if not _is_of(building, request_sha256):
        remove(building)
        building.mkdir()
        (building / REQUEST_FILE).write_text(json.dumps({"sha256": request_sha256}))
    try:
        yield building
    except InvalidInput:
        remove(building)
        raise
    if out.exists():
        out.rename(old)
    building.rename(out)
    remove(old)


def _is_of(building: Path, request_sha256: str) -> bool:
    try:
        return bool(json.loads((building / REQUEST_FILE).read_text())["sha256"] == request_sha256)
    except (OSError, ValueError, KeyError, TypeError):
        return False
