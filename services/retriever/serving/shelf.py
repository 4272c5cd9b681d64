"""The corpora that are served, each replaceable while it is searched.

    new folder --open, verify (beside the old)--> golden query (engine's thread) --> one assignment

Requests hold the corpus that they began with; the old one closes when the last of them is done. Answers of the old one
are not found in the cache any more: its keys carry the index.
"""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog

from searcher.contracts.errors import Conflict, InvalidInput, NotFound, NotReady, Overloaded, SearcherError
from searcher.contracts.search import CorpusInfo
from services.retriever import metrics
from services.retriever.backend import Ask, Found
from services.retriever.index.manifest import state_of
from services.retriever.serving.cache import Hits
from services.retriever.serving.engine import Engine
from services.retriever.serving.library import Corpus, Library, check, index_folder, locations, publish, with_default
from services.retriever.serving.pages import Pages

log = structlog.get_logger()

_READY_SECONDS = 5.0
"""A golden query that takes longer says that the engine is not there, or hopelessly late."""

Identity = tuple[str, tuple[tuple[str, int, int, int], ...]]
"""A folder and the state of its files."""


class Shelf:
    """The backend `index`. Everything but searching happens in the event loop or in threads of its own."""

    def __init__(self, library: Library, engine: Engine, index_dir: Path, *, watch_seconds: float = 0.0) -> None:
        self.library, self.engine, self.index_dir, self.watch_seconds = library, engine, index_dir, watch_seconds
        self._locations: dict[str, Path] = {}
        self._corpora: dict[str, Corpus] = {}
        self._tried: dict[str, Identity | None] = {}
        """What lay in the place of a corpus when it was last opened."""
        self._looked: dict[str, Identity | None] = {}
        """What lay there at the last look."""
        self._pages = Pages()
        self._swapping = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises InvalidInput that names the file at fault."""
        self._locations = locations(self.index_dir)
        self._tried = {name: _identity(location) for name, location in self._locations.items()}
        self._corpora = dict(self.library.open_all(self.index_dir))
        for corpus in set(self._corpora.values()):
            self.engine.pace.expect(_seconds_per_query(corpus, self.engine.max_batch))
        self.engine.start()
        if self.watch_seconds:
            self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        await self.engine.close()
        self._corpora.clear()

    def corpora(self) -> list[CorpusInfo]:
        return [_info(name, corpus) for name, corpus in sorted(self._corpora.items())]

    def corpus(self, name: str) -> Corpus:
        """Raises NotFound that lists what there is."""
        found = self._corpora.get(name)
        if found is None:
            raise NotFound(f"corpus: {name!r} is not one of {', '.join(sorted(self._corpora))}")
        return found

    async def check(self) -> None:
        """Raises NotReady unless a search succeeded a moment ago, or the golden query does now."""
        self.engine.check()
        if self.engine.is_proven:
            return
        try:
            async with asyncio.timeout(_READY_SECONDS):
                for corpus in set(self._corpora.values()):
                    await self.engine.run(partial(check, corpus))
        except TimeoutError:
            raise NotReady(f"the golden query was not answered within {_READY_SECONDS:.0f} s") from None
        except InvalidInput as error:
            raise NotReady(error.detail) from None
        self.engine.prove()

    async def search(self, ask: Ask) -> Found:
        corpus = self.corpus(ask.corpus)
        hits_Q = await self.engine.search(
            ask.queries, corpus=corpus, k_Q=ask.k_Q, deadline_seconds=ask.deadline_seconds, patient=ask.patient
        )
        with metrics.FETCH_SECONDS.time():
            return Found(
                index=corpus.sha256,
                passages_Q=[_passages(corpus, hits) for hits in hits_Q],
                rows_Q=[hits.rows for hits in hits_Q],
                form=corpus.manifest.source.form,
            )

    async def pages(self, urls: Sequence[str], corpus: str, *, deadline_seconds: float = 25.0) -> list[bytes | None]:
        """Raises Overloaded while the addresses of a corpus are first read, if that takes longer."""
        passages = self.corpus(corpus).passages
        try:
            async with asyncio.timeout(deadline_seconds):
                return await self._pages.find(passages, urls)
        except TimeoutError:
            message = f"the addresses of corpus {corpus!r} were not read within {deadline_seconds:g} s; ask again"
            raise Overloaded(message, retry_after_seconds=deadline_seconds) from None

    # -- another index ------------------------------------------------------------------------------------------------

    async def replace(self, name: str, folder: Path | None = None) -> tuple[Corpus, Corpus]:
        """Serve what lies in `folder`, or, if None, where `name` has its place. Returns the old and the new corpus.

        Raises NotFound, InvalidInput if the new one is not sound (the old goes on), or Conflict while another is being
        opened.
        """
        if self._swapping.locked():
            raise Conflict("another index is being opened; try again when it is done")
        async with self._swapping:
            old = self.corpus(name)
            place = self._locations[old.name]
            location = place if folder is None else self.index_dir / folder
            tried = await asyncio.to_thread(_identity, place)  # what changes there while this one is opened is another
            try:
                new = await asyncio.to_thread(self.library.open, location, old.name)
                await self.engine.run(partial(check, new))
            except SearcherError as error:
                metrics.SWAPS.labels("refused").inc()
                log.error("index refused, the older one goes on", corpus=old.name, reason=error.detail)
                raise
            own = {corpus.name: corpus for corpus in self._corpora.values()}
            self._corpora = with_default({**own, old.name: new})
            self._tried[old.name] = tried  # what changed there since is followed again
            publish(new, instead_of=old)
            metrics.SWAPS.labels("swapped").inc()
            log.info("index swapped", corpus=old.name, old=old.sha256[:12], new=new.sha256[:12], folder=str(new.folder))
            return old, new

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.watch_seconds)
            for name, location in list(self._locations.items()):
                try:
                    await self._look(name, location)
                except SearcherError:
                    pass  # `replace` has said why
                except Exception:
                    log.exception("looking for another index failed", corpus=name, location=str(location))

    async def _look(self, name: str, location: Path) -> None:
        """A corpus whose link or folder leads to another index gets that one, once nothing there has changed between
        two looks: it may still be on its way. What was refused is tried again when its files change."""
        identity = await asyncio.to_thread(_identity, location)
        is_settled = name in self._looked and identity == self._looked[name]
        self._looked[name] = identity
        if not is_settled or identity == self._tried[name] or self._swapping.locked():
            return
        self._tried[name] = identity
        if identity is None:
            log.error("no index lies here any more, the one in memory goes on", corpus=name, location=str(location))
        else:
            await self.replace(name)


def _identity(location: Path) -> Identity | None:
    """None while there is no index, as between two steps of whoever moves it there."""
    try:
        folder = index_folder(location)
        return str(folder), state_of(folder)
    except OSError:
        return None


def _seconds_per_query(corpus: Corpus, num_queries: int) -> float:
    """Of a batch of golden queries, which are about as long as questions. Only before the engine runs."""
    began = time.perf_counter()
    corpus.index.search([corpus.manifest.golden.query] * num_queries, 3)
    return (time.perf_counter() - began) / num_queries


def _info(name: str, corpus: Corpus) -> CorpusInfo:
    facts = corpus.manifest
    encoder = getattr(facts.index, "encoder", None)
    return CorpusInfo(
        name=name,
        kind=facts.index.kind,
        num_passages=facts.num_passages,
        index=corpus.sha256,
        encoder=encoder and encoder.name,
        recall=facts.recall,
    )


def _passages(corpus: Corpus, hits: Hits) -> list[bytes]:
    """The passages lie on disk as JSON already; only the scores are written here."""
    line = corpus.passages.line
    return [line(row)[:-1] + b',"score":%.7g}' % score for row, score in zip(hits.rows, hits.scores, strict=True)]
