"""Address -> the whole page, for corpora whose passages have one. Rows are found by a table made when first asked."""

import asyncio
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from services.retriever.index.passages import PassageStore

_URL_FIELD = b'"url":"'


@dataclass
class _Table:
    """Rows with an address, sorted by its hash: 16 bytes a row, no text."""

    hashes_N: NDArray[np.uint64]
    rows_N: NDArray[np.int64]


@dataclass
class Pages:
    _tables: "WeakKeyDictionary[PassageStore, asyncio.Task[_Table]]" = field(default_factory=WeakKeyDictionary)

    async def find(self, passages: PassageStore, urls: Sequence[str]) -> list[bytes | None]:
        """Per address the page as JSON object: title and address of its first passage, and the text of all, in the
        order of the corpus. None for an address that no passage has."""
        if passages not in self._tables:
            self._tables[passages] = asyncio.create_task(asyncio.to_thread(_table, passages))
        table = await asyncio.shield(self._tables[passages])
        return [_page(passages, table, url) for url in urls]


def _table(passages: PassageStore) -> _Table:
    hashes, rows = array("Q"), array("q")
    for row in range(len(passages)):
        line = passages.line(row)
        if _URL_FIELD in line and (url := json.loads(line).get("url")):
            hashes.append(_hash(url))
            rows.append(row)
    hashes_N, rows_N = np.array(hashes, dtype=np.uint64), np.array(rows, dtype=np.int64)
    order = np.argsort(hashes_N, kind="stable")
    return _Table(hashes_N[order], rows_N[order])


def _page(passages: PassageStore, table: _Table, url: str) -> bytes | None:
    wanted = np.uint64(_hash(url))
    first, last = np.searchsorted(table.hashes_N, wanted, "left"), np.searchsorted(table.hashes_N, wanted, "right")
    found = [json.loads(passages.line(int(row))) for row in table.rows_N[first:last]]
    parts = [passage for passage in found if passage["url"] == url]
    if not parts:
        return None
    return json.dumps({**parts[0], "text": "\n".join(part["text"] for part in parts), "score": 0.0}).encode()


def _hash(url: str) -> int:
    return int.from_bytes(blake2b(url.encode(), digest_size=8).digest(), "little")
