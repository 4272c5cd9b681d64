"""What several parts ask of files."""

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Reads it in pieces, however large it is."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
