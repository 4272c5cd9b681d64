"""Where an index is built: beside its place, one builder at a time, and gone on with after a kill."""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from searcher.contracts.errors import InvalidInput
from services.retriever.index.layout import INDEX_NAMES, PASSAGES_FILE
from services.retriever.index.manifest import MANIFEST_FILE, Manifest, read_manifest, unlisted, verify

REQUEST_FILE, STAGES_FILE = ".request.json", ".stages.json"
"""Of a build that is not finished; no part of the index, as their names say."""


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
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
    """An index is replaced as a whole, so whatever else lay in its folder would be lost."""
    if out.is_mount():
        raise InvalidInput(f"out: {out} is a mount point, which cannot be replaced as a whole; name a folder inside it")
    if not (out / MANIFEST_FILE).is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InvalidInput(f"out: {out} exists and is not an index; name another folder")
        return
    try:
        names = unlisted(out, read_manifest(out))
    except InvalidInput as error:  # damaged, or of another version, if its files are called like an index'
        known = INDEX_NAMES | {MANIFEST_FILE}
        names = [path.name for path in sorted(out.iterdir()) if path.name not in known and path.name[0] != "."]
        if not (out / PASSAGES_FILE).is_file():
            raise InvalidInput(f"out: {error.detail}; name another folder") from None
    if names:
        raise InvalidInput(f"out: {out / names[0]} is no part of the index there and would be lost; move it away")


@contextmanager
def only_builder(out: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Builders of one folder wait for each other; the second finds it done. The lock dies with its process."""
    with (out.parent / f".{out.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another build of {out} is under way; waiting for its end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def finish_interrupted(out: Path) -> None:
    """What is left of a build that was killed when its index was complete: that takes its place; an older one that had
    been moved away, with nothing in its place, is put back."""
    building, old = _building(out), _old(out)
    if complete_index(building):
        _put_in_place(building, out)
    elif old.exists() and not out.exists():
        old.rename(out)
    remove(old)


@contextmanager
def building_folder(out: Path, request_sha256: str) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end of the block.

    One that an interrupted build of the same request left is gone on with. Where the input is at fault there is nothing
    to go on with, and it goes.
    """
    building = _building(out)
    if not _is_of(building, request_sha256):
        remove(building)
        building.mkdir()
        (building / REQUEST_FILE).write_text(json.dumps({"sha256": request_sha256}))
    try:
        yield building
    except InvalidInput:
        remove(building)
        raise
    refuse_other_content(out)  # what came meanwhile would be lost as well
    _put_in_place(building, out)


def _building(out: Path) -> Path:
    return out.parent / f".{out.name}.building"


def _old(out: Path) -> Path:
    return out.parent / f".{out.name}.old"


def _put_in_place(building: Path, out: Path) -> None:
    for name in (REQUEST_FILE, STAGES_FILE):
        (building / name).unlink(missing_ok=True)
    if out.exists():
        out.rename(_old(out))
    building.rename(out)
    remove(_old(out))


def _is_of(building: Path, request_sha256: str) -> bool:
    try:
        return bool(json.loads((building / REQUEST_FILE).read_text())["sha256"] == request_sha256)
    except (OSError, ValueError, KeyError, TypeError):
        return False
