"""What answers queries: an index here (`shelf`), or search engines of the web (`web`). Routes know only this seam."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from searcher.contracts.search import CorpusInfo
from services.retriever.index.manifest import SourceForm

DEFAULT = "default"
"""The corpus of a request that names none."""


@dataclass(frozen=True)
class Ask:
    """One request: queries that are answered together."""

    queries: Sequence[str]
    k_Q: Sequence[int]
    """Passages wanted, per query."""
    corpus: str = DEFAULT
    deadline_seconds: float = 25.0
    """From now. Who cannot be served inside it is refused."""
    patient: bool = False
    """Rather wait for one's turn until the deadline, and then for the end, than be refused at once."""


@dataclass(frozen=True)
class Found:
    index: str
    """What CorpusInfo.index says."""
    passages_Q: list[list[bytes]]
    """Per query, best first: contract `Passage` as JSON objects, never empty ones."""
    rows_Q: Sequence[Sequence[int]]
    """Per passage a number that R1-Searcher's clients can cut off."""
    form: SourceForm = SourceForm.JSONL
    """How the corpus' own source writes a passage down."""


class Backend(Protocol):
    async def start(self) -> None: ...

    async def close(self) -> None:
        """Answer what waits, then let go of everything."""
        ...

    async def check(self) -> None:
        """Raises NotReady if it could not answer."""
        ...

    async def search(self, ask: Ask) -> Found:
        """Raises NotFound, Overloaded, UpstreamUnavailable; nothing found is an empty list. Cancel it to leave."""
        ...

    def corpora(self) -> list[CorpusInfo]: ...

    async def pages(self, urls: Sequence[str], corpus: str, *, deadline_seconds: float) -> list[bytes | None]:
        """The whole page at an address as contract `Passage`, or None if there is none."""
        ...
