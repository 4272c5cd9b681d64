"""What was asked -> what was answered then. A folder of answers: recorded once, played back byte for byte for nothing.

    <folder>/cassette.json                     which cassette this is
    <folder>/<kind>/<2 hex>/<sha256>.json      {"asked": …, "answer": …, "sha256": …}; kinds: hits, page, summary
    <folder>/spent                             the budget's ledger (limits.py)

Entries are written once and never changed: of two processes that record the same, the first to finish wins and the
other serves the first one's answer. Requests are not stored, so no key can be.
"""

import asyncio
import hashlib
import json
import math
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from searcher.contracts.errors import InvalidInput, NotFound, SearcherError, UpstreamUnavailable
from services.retriever.web import metrics

Asked = Mapping[str, str | int | None]
Ask = Callable[[float], Awaitable[Any]]
"""Until when it may take -> what JSON can hold."""

_FORMAT = 2
_WORTH_ASKING_SECONDS = 0.25
"""Callers whose time ends closer together than this share one failure, as the samples of a group do."""


class CassetteMode(StrEnum):
    OFF = "off"
    """Everything is asked anew."""
    RECORD = "record"
    """What is there is played; the rest is asked, and kept."""
    REPLAY = "replay"
    """Only what is there. Asks nobody."""


class Cassette:
    """Identical questions in flight are asked once, in every mode."""

    def __init__(self, mode: CassetteMode, folder: Path | None) -> None:
        self.mode = mode
        self._folder = _opened(mode, folder)
        self._in_flight: dict[str, _Flight] = {}
        self.id = _identity(mode, self._folder)
        """Two runs that report the same one gave the same answers to the same questions."""

    @property
    def ledger(self) -> Path | None:
        return self._folder / "spent" if self.mode is CassetteMode.RECORD and self._folder is not None else None

    async def play(self, kind: str, asked: Asked, ask: Ask, *, name: str, until: float = math.inf) -> Any:
        """The answer to `asked`: kept, in flight, or from `ask`. `name` names it in errors.

        `until` is when the caller leaves, who sees to that himself. Of identical questions in flight the first one's
        `ask` is used, with the time of whoever waits longest.
        Raises NotFound for what replay does not know, and whatever `ask` raises; failures are not kept.
        """
        key = hashlib.sha256(json.dumps([kind, asked], sort_keys=True).encode()).hexdigest()
        flight = self._in_flight.get(key)
        if flight is None or flight.is_over:
            flight = self._in_flight[key] = _Flight(partial(self._answer, kind, key, asked, ask, name))
        else:
            metrics.COALESCED.labels(kind).inc()
        try:
            return await flight.join(until)
        finally:
            if flight.is_over and self._in_flight.get(key) is flight:
                del self._in_flight[key]

    async def _answer(self, kind: str, key: str, asked: Asked, ask: Ask, name: str, until: float) -> Any:
        if self._folder is None:
            return _plain(await ask(until))
        path = self._folder / kind / key[:2] / f"{key}.json"
        kept = await asyncio.to_thread(_kept, path)
        if kept is not None:
            answer = _unchanged(kept, kind, asked, path)
            metrics.CASSETTE_LOOKUPS.labels(kind, "played").inc()
            return answer
        if self.mode is CassetteMode.REPLAY:
            metrics.CASSETTE_LOOKUPS.labels(kind, "missing").inc()
            raise NotFound(
                f"{name} is not in the cassette {self._folder}, and RETRIEVER_WEB_CASSETTE_MODE=replay asks nobody; "
                "record it first"
            )
        entry = _entry(kind, asked, _plain(await ask(until)))
        metrics.CASSETTE_LOOKUPS.labels(kind, "recorded").inc()
        return _unchanged(await asyncio.to_thread(_keep, path, entry), kind, asked, path)


class _Flight:
    """One question that several wait for. It is given up when the last of them has left."""

    def __init__(self, answer: Callable[[float], Awaitable[Any]]) -> None:
        self._answer = answer
        self._untils: list[float] = []
        """When they leave who wait."""
        self._task = asyncio.create_task(self._fly())

    @property
    def is_over(self) -> bool:
        """Answered, failed or given up: nobody may join any more."""
        return not self._untils or self._task.done()

    async def join(self, until: float) -> Any:
        self._untils.append(until)
        try:
            return await asyncio.shield(self._task)
        finally:
            self._untils.remove(until)
            if not self._untils:
                self._task.cancel()

    async def _fly(self) -> Any:
        """Asks again if it failed with the time of one who had less of it than another who joined."""
        while True:
            given = max(self._untils)
            try:
                return await self._answer(given)
            except UpstreamUnavailable:
                has_more_time = any(until > given and until - given >= _WORTH_ASKING_SECONDS for until in self._untils)
                if not has_more_time:
                    raise


def _entry(kind: str, asked: Asked, answer: Any) -> dict[str, Any]:
    content = {"asked": dict(asked), "answer": answer}
    return {**content, "sha256": hashlib.sha256(json.dumps([kind, content], sort_keys=True).encode()).hexdigest()}


def _unchanged(entry: Mapping[str, Any], kind: str, asked: Asked, path: Path) -> Any:
    """The entry's answer. Raises SearcherError for one that is not as it was recorded."""
    answer = entry.get("answer")
    if entry != _entry(kind, asked, answer):
        raise SearcherError(f"{path} is damaged (not as it was recorded); delete it and record it again")
    return answer


def _plain(answer: Any) -> Any:
    """As it will come back from disk, so that the run that records sees what a replay sees."""
    return json.loads(json.dumps(answer))


def _opened(mode: CassetteMode, folder: Path | None) -> Path | None:
    if mode is CassetteMode.OFF:
        return None
    if folder is None:
        raise InvalidInput(f"RETRIEVER_WEB_CASSETTE: name a folder; RETRIEVER_WEB_CASSETTE_MODE={mode} needs one")
    if mode is CassetteMode.REPLAY and not (folder / "cassette.json").is_file():
        raise InvalidInput(f"RETRIEVER_WEB_CASSETTE: {folder} holds no cassette.json; record one first")
    return folder


def _identity(mode: CassetteMode, folder: Path | None) -> str:
    if folder is None:
        return f"web-{secrets.token_hex(8)}"  # the live web: no two runs can be sure to see the same
    path = folder / "cassette.json"
    new = {"format": _FORMAT, "id": secrets.token_hex(16)}
    card = _kept(path) if mode is CassetteMode.REPLAY else _keep(path, new)
    if card is None or card.get("format") != _FORMAT or not isinstance(card.get("id"), str):
        raise InvalidInput(f"RETRIEVER_WEB_CASSETTE: {path} is not of format {_FORMAT}; record a new cassette")
    return f"cassette-{card['id']}"


def _kept(path: Path) -> dict[str, Any] | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        entry = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SearcherError(f"{path} is damaged ({error}); delete it and record it again") from error
    if not isinstance(entry, dict):
        raise SearcherError(f"{path} is damaged (no object); delete it and record it again")
    return entry


def _keep(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Write it unless it is there; what is there then. Seen whole or not at all, by others and after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with draft.open("xb") as file:
            file.write(json.dumps(entry, ensure_ascii=False, indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)  # unlike a rename, it leaves alone what is there
    finally:
        draft.unlink(missing_ok=True)
    kept = _kept(path)
    assert kept is not None, path
    return kept
