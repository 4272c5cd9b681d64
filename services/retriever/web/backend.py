"""RETRIEVER_WEB_* -> the backend `web`: everything put together, checked before the first request."""

import time
from collections.abc import Sequence

from searcher.contracts.errors import InvalidInput, NotFound, NotReady
from searcher.contracts.search import CorpusInfo, Passage
from services.retriever.backend import DEFAULT, Ask, Found
from services.retriever.settings import RetrieverSettings
from services.retriever.web.cassette import Cassette, CassetteMode
from services.retriever.web.chain import Chain
from services.retriever.web.exchange import Exchanger
from services.retriever.web.extractor import Extractor
from services.retriever.web.limits import Budget
from services.retriever.web.pages import PageReader
from services.retriever.web.providers import DIALECTS, Provider, ProviderName
from services.retriever.web.searcher import Style, WebSearcher
from services.retriever.web.settings import SUMMARISER, Paid, WebSettings
from services.retriever.web.summary import Summariser
from services.retriever.web.upstream import Terms, Upstream

WEB = "web"
"""The one corpus, which is also the default."""
MAX_ACCESSED_CHARACTERS = 200_000


def open_web_backend(settings: RetrieverSettings) -> "WebBackend":
    return WebBackend(settings.web)


class WebBackend:
    """A Backend. `start` opens everything; until then nothing is read but the settings."""

    def __init__(self, settings: WebSettings) -> None:
        self._settings = settings
        self._searcher: WebSearcher | None = None

    async def start(self) -> None:
        """Raises InvalidInput that names the setting at fault. Asks nobody: a search costs money."""
        settings = self._settings
        try:
            settings.require_complete()
            self._cassette = Cassette(settings.cassette_mode, settings.cassette)
            self._exchanger = Exchanger()
            self._budget = Budget(settings.budget_usd, ledger=self._cassette.ledger)
            self._pages = PageReader(
                max_bytes=settings.max_page_bytes,
                seconds=settings.page_seconds,
                user_agent=settings.user_agent,
                allowed=settings.allowed_addresses,
                extractor=Extractor(processes=settings.page_processes),
            )
            self._searcher = WebSearcher(
                _style(settings),
                cassette=self._cassette,
                chain=Chain(self._providers()),
                pages=self._pages,
                summariser=self._summariser(),
                max_concurrent_queries=settings.max_concurrent_queries,
            )
        except ValueError as error:
            raise InvalidInput(str(error)) from error

    async def close(self) -> None:
        self._searcher = None
        await self._exchanger.close()
        await self._pages.close()

    async def check(self) -> None:
        """A provider's outage is an error of the requests that meet it: another replica would fare no better."""
        if self._searcher is None:
            raise NotReady("online search is not running")

    async def search(self, ask: Ask) -> Found:
        searcher = self._open(ask.corpus)
        found_Q = await searcher.search(ask.queries, ask.k_Q, deadline_seconds=ask.deadline_seconds)
        passages_Q = [[passage.model_dump_json().encode() for passage in found] for found in found_Q]
        return Found(self._cassette.id, passages_Q, [range(1, len(found) + 1) for found in found_Q])

    async def pages(self, urls: Sequence[str], corpus: str, *, deadline_seconds: float) -> list[bytes | None]:
        found = await self._open(corpus).pages(urls, deadline_seconds=deadline_seconds)
        return [_whole(url, page.text[:MAX_ACCESSED_CHARACTERS]) for url, page in zip(urls, found, strict=True)]

    def corpora(self) -> list[CorpusInfo]:
        return [CorpusInfo(name=name, kind=WEB, num_passages=0, index=self._cassette.id) for name in (DEFAULT, WEB)]

    def _open(self, corpus: str) -> WebSearcher:
        if corpus not in (DEFAULT, WEB):
            raise NotFound(f"corpus: {corpus!r} is not one of {DEFAULT}, {WEB}; RETRIEVER_BACKEND=web has no other")
        if self._searcher is None:
            raise NotReady("online search is not running")
        return self._searcher

    # -- what is asked ------------------------------------------------------------------------------------------------

    def _providers(self) -> list[Provider]:
        """None to replay: it needs no keys and no money."""
        if self._settings.cassette_mode is CassetteMode.REPLAY:
            return []
        return [self._provider(name) for name in self._settings.providers]

    def _provider(self, name: ProviderName) -> Provider:
        dialect, key = DIALECTS[name], self._settings.key_of(name)
        if dialect.needs_key and key is None:
            raise InvalidInput(
                f"RETRIEVER_WEB_KEYS_DIR: no file {name} in {self._settings.keys_dir}; write the key there"
            )
        upstream = self._upstream(name, self._settings.provider_seconds)
        secret = "" if key is None else key.get_secret_value()
        return Provider(dialect, upstream, address=self._settings.address_of(name), key=secret)

    def _summariser(self) -> Summariser | None:
        settings = self._settings
        if settings.summariser_model is None:
            return None
        key = settings.key_of(SUMMARISER)
        return Summariser(
            self._upstream(SUMMARISER, settings.summariser_seconds),
            base_url=settings.summariser_url or "",
            model=settings.summariser_model,
            key=None if key is None else key.get_secret_value(),
        )

    def _upstream(self, name: Paid, attempt_seconds: float) -> Upstream:
        settings = self._settings
        price = settings.price_of(name)
        if price > settings.budget_usd and settings.cassette_mode is not CassetteMode.REPLAY:
            raise InvalidInput(
                f"RETRIEVER_WEB_BUDGET_USD: {settings.budget_usd:g} does not pay for one request to {name} "
                f"({price:g} USD); say what this run may spend"
            )
        terms = Terms(price, settings.rate_of(name), attempt_seconds)
        return Upstream(name, self._exchanger, terms, budget=self._budget, clock=time.monotonic)


def _whole(url: str, text: str) -> bytes | None:
    return Passage(id=url, title="", text=text, url=url, score=0.0).model_dump_json().encode() if text else None


def _style(settings: WebSettings) -> Style:
    return Style(
        text=settings.text,
        site=settings.site,
        language=settings.language,
        max_passage_characters=settings.max_passage_characters,
        max_page_characters=settings.max_page_characters,
    )
