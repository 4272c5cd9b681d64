"""Which indexes a run searches, noted with the run: what a policy learns depends on them, and how exact they are."""

from collections.abc import Set

from searcher.clients.retriever import RetrieverClient
from searcher.contracts.errors import SearcherError
from searcher.contracts.search import CorpusInfo
from services.trainer.rundir import RunDirectory

EXACT_ENOUGH = 0.98
"""Recall below which a policy is known to learn from what the index misses (arXiv 2505.15117)."""


class SearchedIndexes:
    """Training never waits for this, nor ends by it: a retriever that does not tell is an event."""

    def __init__(self, directory: RunDirectory, corpora: Set[str], retriever: RetrieverClient | None) -> None:
        self.directory, self.corpora, self.retriever = directory, corpora, retriever
        self._seen: dict[str, CorpusInfo] = {}

    async def note(self) -> None:
        """An event per index that is new here: at the start, and whenever the retriever serves another one."""
        if self.retriever is None:
            return
        try:
            served = await self.retriever.corpora()
        except SearcherError as error:
            self.directory.event("index_unknown", why=error.detail)
            return
        for info in served:
            if info.name in self.corpora and info != self._seen.get(info.name):
                self._seen[info.name] = info
                self.directory.event("index", corpus=info.name, **info.model_dump(mode="json", exclude={"name"}))
                if info.recall is not None and info.recall.recall < EXACT_ENOUGH:
                    self.directory.event(
                        "index_misses_passages",
                        corpus=info.name,
                        recall=info.recall.recall,
                        advice=f"below {EXACT_ENOUGH}: build it again with a higher --recall, or as flat or fp16",
                    )

    def figures(self) -> dict[str, float]:
        """`index/recall`: the lowest of the indexes that are searched; nothing where none was measured (bm25, web)."""
        recalls = [info.recall.recall for info in self._seen.values() if info.recall is not None]
        return {"index/recall": min(recalls)} if recalls else {}
