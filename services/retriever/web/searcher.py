"""Queries -> passages from the web. Where hits, pages and summaries come from is left to chain, pages and summary.

    query -> hits -> snippet:  a passage per hit, as the provider quotes it
                  -> page:     a passage per hit, with the page's main text
                  -> summary:  one passage: the first hit whose page says something about the query

Every arrow goes through the cassette, so that a run can be played back.
"""

import asyncio
import hashlib
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from searcher.contracts.errors import UpstreamUnavailable
from searcher.contracts.search import Passage
from services.retriever.web.cassette import Cassette
from services.retriever.web.chain import Chain
from services.retriever.web.limits import Clock
from services.retriever.web.pages import Page, PageReader
from services.retriever.web.providers import Hit, WebQuery
from services.retriever.web.summary import Summariser
from services.retriever.web.upstream import UpstreamFailed

T = TypeVar("T")

SUMMARISED_HITS = 3
"""R1-Searcher gives up after the third page."""
_PART_OF_DEADLINE = 0.95
"""Who we ask has a little less time than we have, so that its error arrives and not our own impatience."""


class TextKind(StrEnum):
    SNIPPET = "snippet"
    PAGE = "page"
    SUMMARY = "summary"


@dataclass(frozen=True)
class Style:
    """What answers look like."""

    text: TextKind = TextKind.SNIPPET
    site: str | None = None
    language: str = "en"
    max_passage_characters: int = 2_000
    max_page_characters: int = 35_000
    """What the summariser reads of a page."""


class WebSearcher:
    def __init__(
        self,
        style: Style,
        *,
        cassette: Cassette,
        chain: Chain,
        pages: PageReader,
        summariser: Summariser | None = None,
        max_concurrent_queries: int = 64,
        clock: Clock = time.monotonic,
    ) -> None:
        assert summariser is not None or style.text is not TextKind.SUMMARY, style
        self.style = style
        self._cassette, self._chain, self._pages, self._summariser = cassette, chain, pages, summariser
        self._turns = asyncio.Semaphore(max_concurrent_queries)
        self._clock = clock

    async def search(
        self, queries: Sequence[str], k_Q: Sequence[int], *, deadline_seconds: float
    ) -> list[tuple[Passage, ...]]:
        """Passages per query, best first, at most ten; () is "nothing found".

        Raises UpstreamUnavailable, BudgetSpent, or NotFound for what a replayed cassette does not know. What was
        answered before that is kept if a cassette records, so that asking again goes on from there.
        """
        until = self._clock() + _PART_OF_DEADLINE * deadline_seconds
        return await _all(
            [self._passages(query, k, until) for query, k in zip(queries, k_Q, strict=True)],
            deadline_seconds,
            done="queries were answered from the web",
            fix="ask fewer at once, or raise RETRIEVER_WEB_REQUESTS_PER_SECOND if your plan allows",
        )

    async def pages(self, urls: Sequence[str], *, deadline_seconds: float) -> list[Page]:
        """What stands at each address; its text is "" if it cannot be read. Raises as `search` does."""
        return await _all(
            [self._page(url) for url in urls],
            deadline_seconds,
            done="pages were read",
            fix="ask for fewer at once, or wait longer",
        )

    async def _page(self, url: str) -> Page:
        async def ask(until: float) -> object:  # a page's own limit holds: that we were in a hurry says nothing of it
            return (await self._pages.read(url)).model_dump()

        return Page.model_validate(await self._cassette.play("page", {"url": url}, ask, name=f"page {url[:200]!r}"))

    async def _passages(self, query: str, k: int, until: float) -> tuple[Passage, ...]:
        async with self._turns:
            hits = await self._hits(query, until)
            match self.style.text:
                case TextKind.SNIPPET:
                    return tuple(self._passage(hit, hit.snippet) for hit in hits[:k])
                case TextKind.PAGE:
                    texts = await asyncio.gather(*(self._read(hit) for hit in hits[:k]))
                    return tuple(self._passage(hit, text) for hit, text in zip(hits, texts, strict=False))
                case TextKind.SUMMARY:
                    return await self._first_summary(query, hits[:SUMMARISED_HITS], until)

    async def _first_summary(self, query: str, hits: Sequence[Hit], until: float) -> tuple[Passage, ...]:
        for hit in hits:
            page = _cut(await self._read(hit), self.style.max_page_characters)
            if page and (summary := await self._summary(query, page, until)):
                return (self._passage(hit, summary),)
        return ()

    async def _read(self, hit: Hit) -> str:
        """The page's text; where there is none, what the provider quotes of it."""
        return (await self._page(hit.url)).text or hit.snippet

    def _passage(self, hit: Hit, text: str) -> Passage:
        text = _cut(text, self.style.max_passage_characters)
        return Passage(id=hit.url, title=hit.title, text=text, url=hit.url, score=hit.score)

    # -- through the cassette -----------------------------------------------------------------------------------------

    async def _hits(self, query: str, until: float) -> list[Hit]:
        wanted = WebQuery(query, site=self.style.site, language=self.style.language)

        async def ask(until: float) -> object:
            return [hit.model_dump() for hit in await self._chain.hits(wanted, until=until)]

        asked = {"query": wanted.text, "site": wanted.site, "language": wanted.language}
        kept = await self._cassette.play("hits", asked, ask, name=f"query {query[:200]!r}", until=until)
        return [Hit.model_validate(hit) for hit in kept]

    async def _summary(self, query: str, page: str, until: float) -> str | None:
        summariser = self._summariser
        assert summariser is not None

        async def ask(until: float) -> object:
            try:
                return await summariser.summary(query, page, until=until)
            except UpstreamFailed as error:
                raise UpstreamUnavailable(
                    f"the summariser did not answer: {error.outcome} ({error})",
                    retry_after_seconds=error.retry_after_seconds or 1.0,
                ) from error

        asked = {"query": query, "page": hashlib.sha256(page.encode()).hexdigest(), "model": summariser.model}
        name = f"summary for query {query[:200]!r}"
        kept: str | None = await self._cassette.play("summary", asked, ask, name=name, until=until)
        return kept


async def _all(work: Sequence[Coroutine[Any, Any, T]], deadline_seconds: float, *, done: str, fix: str) -> list[T]:
    """Everything, at the same time. Raises UpstreamUnavailable that says how far it came; the rest is given up."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        async with asyncio.timeout(deadline_seconds):
            return await asyncio.gather(*tasks)
    except TimeoutError as error:
        num_done = sum(task.done() and not task.cancelled() for task in tasks)
        raise UpstreamUnavailable(f"{num_done} of {len(tasks)} {done} within {deadline_seconds:g} s; {fix}") from error
    finally:
        for task in tasks:
            task.cancel()


def _cut(text: str, max_characters: int) -> str:
    """Between two words, unless one word is all there is."""
    if len(text) <= max_characters:
        return text
    start, following = text[:max_characters], text[max_characters]
    ends_within_a_word = not start[-1].isspace() and not following.isspace()
    if ends_within_a_word and len(words := start.rsplit(maxsplit=1)) == 2:
        start = words[0]
    return start.rstrip()
