"""What several parts ask of files."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

OnBytes = Callable[[int, int], object]
"""Hears how many bytes are done, and of how many."""
_PIECE_BYTES = 4 * 1024 * 1024


def file_sha256(path: Path, *, on_bytes: OnBytes = lambda done, total: None) -> str:
    """Reads it in pieces, however large it is."""
    return files_sha256([path], on_bytes=on_bytes)[0]


def files_sha256(paths: Sequence[Path], *, on_bytes: OnBytes = lambda done, total: None) -> list[str]:
    """Of each file, in their order; progress is that of all."""
    total = sum(path.stat().st_size for path in paths)
    done, digests = 0, list[str]()
    for path in paths:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
                done += len(piece)
                on_bytes(done, total)
        digests.append(digest.hexdigest())
    return digests
