"""rollout <-> retriever: queries -> passages, best first."""

from typing import Literal

from pydantic import Field

from searcher.contracts.base import Contract, Name, ShortText


class SearchRequest(Contract):
    queries: tuple[ShortText, ...] = Field(min_length=1, max_length=512)
    k: int = Field(default=3, ge=1, le=100, strict=True)
    corpus: Name = "default"


class Passage(Contract):
    id: str
    title: str
    text: str
    url: str = ""
    """Where it was found; empty for corpora without addresses."""
    score: float
    """Higher is better; comparable within one corpus and one kind of index only."""

    @property
    def line(self) -> str:
        """How the passage is shown to the policy, on one line (R1-Searcher's HotpotQA corpus form)."""
        return f"Title: {self.title}. {self.text}" if self.title else self.text


class SearchResponse(Contract):
    corpus: str
    index: str
    """Identifies the index build (its manifest's sha256): two runs that report the same one searched the same index."""
    results: tuple[tuple[Passage, ...], ...]
    """One list per query, in the order asked. A corpus smaller than k gives what there is."""


class Recall(Contract):
    """How many of the truly nearest passages the index finds."""

    recall: float = Field(ge=0.0, le=1.0)
    """Mean share of the `k` nearest by exact search. Below ~0.98 a policy notices: train on a more exact index."""
    k: int
    num_queries: int
    queries: Literal["questions", "passages"]
    """`questions`: a file of real ones was given. `passages`: words cut out of the corpus' own passages."""


class CorpusInfo(Contract):
    """One name under which `corpus` can be asked."""

    name: str
    kind: str
    num_passages: int
    """0 where nobody knows, as on the web."""
    index: str
    """Identifies the build (the sha256 of its manifest), as in every search response."""
    encoder: str | None = None
    """Of an index of vectors."""
    recall: Recall | None = None
    """Of an index of vectors, against exact search, measured when it was built."""
