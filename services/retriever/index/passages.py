"""Passages of an index, by row.

One file of JSON lines and one of int64 offsets, both memory-mapped: a passage costs no Python object until it is asked
for, and then it is already the bytes of the response.
"""

import json
import mmap
from pathlib import Path
from typing import Self

import numpy as np

from services.retriever.index.layout import OFFSETS_FILE, PASSAGES_FILE


def searchable_text(title: str, text: str) -> str:
    """What is indexed of a passage, by every kind of index."""
    return f"{title} {text}" if title else text


class PassageStore:
    """Passages by row, from memory-mapped files; rows are those of the index."""

    def __init__(self, folder: Path) -> None:
        with (folder / PASSAGES_FILE).open("rb") as blob:
            self._blob = mmap.mmap(blob.fileno(), 0, access=mmap.ACCESS_READ)
        self._offsets = memoryview(np.load(folder / OFFSETS_FILE, mmap_mode="r"))  # arrays are slow, one by one

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._blob.close()

    def line(self, row: int) -> bytes:
        """The passage as JSON object, `{"id":…,"title":…,"text":…}`, without a line break."""
        return self._blob[self._offsets[row] : self._offsets[row + 1] - 1]

    def searchable_texts(self, start: int, stop: int) -> list[str]:
        """What is indexed of the rows from `start` up to `stop`."""
        rows = (json.loads(self.line(row)) for row in range(start, min(stop, len(self))))
        return [searchable_text(row["title"], row["text"]) for row in rows]
