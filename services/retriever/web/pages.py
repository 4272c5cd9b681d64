"""A URL -> the main text of its page, or why there is none. Which URLs are worth it is decided by searcher.py.

Everything here comes from strangers: where the URL leads is checked by guard.py at every hop, sizes and times are
capped, and a page that cannot be read is a fact about the page, not an outage of ours.
"""

import asyncio
import re
from collections.abc import Sequence
from enum import StrEnum
from urllib.parse import urljoin, urlsplit

import structlog
from pydantic import BaseModel, ConfigDict

from services.retriever.web import metrics
from services.retriever.web.exchange import ExchangeFailed, Exchanger, NoResponse, Request, Response
from services.retriever.web.extractor import Extractor, TooHard
from services.retriever.web.guard import AddressRefused, GuardedBackend, Resolve, checked_url, resolved

log = structlog.get_logger()

MAX_REDIRECTS = 5
MAX_FETCHES = 32
"""At a time. Others wait without their time running, so that our haste is not taken for a page's slowness."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KINDS = ("text/html", "application/xhtml+xml", "text/plain")
_WIKIPEDIA_END = re.compile(r"^(References|Notes|Notes and references)$", re.MULTILINE)


class NoText(StrEnum):
    """Why a page has no text for us; besides these, exchange.NoResponse."""

    REFUSED = "refused"
    STATUS = "status"
    REDIRECTS = "redirects"
    CONTENT_TYPE = "content_type"
    NO_TEXT = "no_text"
    TOO_HARD = "too_hard"
    """To find the text took too long or too much memory."""


class Page(BaseModel):
    """`text` is "" where `unread` says why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    unread: str = ""


class _Unreadable(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class PageReader:
    def __init__(
        self,
        *,
        max_bytes: int,
        seconds: float,
        user_agent: str,
        allowed: Sequence[tuple[str, int]] = (),
        resolve: Resolve = resolved,
        extractor: Extractor | None = None,
    ) -> None:
        self._max_bytes, self._seconds = max_bytes, seconds
        self._headers = {"User-Agent": user_agent, "Accept": "text/html, application/xhtml+xml, text/plain;q=0.5"}
        self._exchanger = Exchanger(backend=GuardedBackend(allowed=allowed, resolve=resolve))
        self._extractor = extractor or Extractor()
        self._fetching = asyncio.Semaphore(MAX_FETCHES)

    async def close(self) -> None:
        await self._exchanger.close()
        await self._extractor.close()

    async def read(self, url: str) -> Page:
        """Never raises for a page's sake; UpstreamUnavailable if we are not able to read any."""
        outcome, detail = "read", ""
        try:
            page = Page(text=await self._text(await self._fetch(url), url))
        except _Unreadable as error:
            outcome, detail = error.reason, str(error)
            page = Page(text="", unread=outcome)
            log.info("page not read", url=url[:500], reason=outcome, detail=detail[:500])
        metrics.PAGES.labels(outcome).inc()
        return page

    async def _fetch(self, url: str) -> Response:
        try:
            async with self._fetching, asyncio.timeout(self._seconds):
                with metrics.PAGE_SECONDS.time():
                    return await self._follow(url)
        except TimeoutError as error:
            raise _Unreadable(NoResponse.TIMEOUT, f"not fetched within {self._seconds:g} s") from error

    async def _follow(self, url: str) -> Response:
        """Redirects too, every one checked like the first address."""
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._get(url)
            if response.status not in _REDIRECTS or "location" not in response.headers:
                return response
            try:
                url = urljoin(url, _as_sent(response.headers["location"]))
            except ValueError as error:
                raise _Unreadable(NoText.REDIRECTS, f"leads to no URL: {error}") from error
        raise _Unreadable(NoText.REDIRECTS, f"more than {MAX_REDIRECTS} redirects")

    async def _get(self, url: str) -> Response:
        try:
            request = Request("GET", checked_url(url), self._headers)
            return await self._exchanger.exchange(request, max_bytes=self._max_bytes, seconds=self._seconds)
        except AddressRefused as error:
            metrics.REFUSED_ADDRESSES.labels(error.reason).inc()
            raise _Unreadable(NoText.REFUSED, f"{error.reason}: {error}") from error
        except ExchangeFailed as error:
            raise _Unreadable(error.why, str(error)) from error

    async def _text(self, response: Response, url: str) -> str:
        if response.status != 200:
            raise _Unreadable(NoText.STATUS, f"HTTP {response.status}")
        kind = response.headers.get("content-type", "text/html")
        if not kind.lower().lstrip().startswith(_KINDS):
            raise _Unreadable(NoText.CONTENT_TYPE, kind)
        try:
            text = await self._extractor.text(response.content, kind)
        except TooHard as error:
            raise _Unreadable(NoText.TOO_HARD, str(error)) from error
        if _is_wikipedia(url):
            text = _WIKIPEDIA_END.split(text, maxsplit=1)[0].rstrip()
        if not text:
            raise _Unreadable(NoText.NO_TEXT, "no main text found")
        return text


def _is_wikipedia(url: str) -> bool:
    host = (urlsplit(url).hostname or "").rstrip(".")
    return host == "wikipedia.org" or host.endswith(".wikipedia.org")


def _as_sent(location: str) -> str:
    """Headers are read as Latin-1; servers that do not escape an address send it as UTF-8."""
    try:
        return location.encode("latin-1").decode()
    except UnicodeError:
        return location
