"""A query -> hits of one search provider. Seven dialects of the same conversation, one table at the end.

Retries, rates and money are upstream.py's; which provider is asked is chain.py's.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict

from services.retriever.web.exchange import Request
from services.retriever.web.upstream import Outcome, Upstream, UpstreamFailed

ProviderName = Literal["serper", "searxng", "brave", "tavily", "exa", "serpapi", "google"]

NUM_HITS = 10
"""Asked for at once: what every provider gives for the price of one request."""
_MAX_QUERY_CHARACTERS, _MAX_QUERY_WORDS = 400, 50
"""The narrowest of the providers' limits (Brave's). They read no more, and some answer 422."""


class Hit(BaseModel):
    """One result, whoever found it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    url: str
    snippet: str
    score: float
    """1 / rank: the providers' own scores cannot be compared with each other."""
    provider: str


@dataclass(frozen=True)
class WebQuery:
    text: str
    site: str | None = None
    """Only pages of this host, such as en.wikipedia.org."""
    language: str = "en"

    @property
    def words(self) -> str:
        """What a provider reads of a query."""
        return self._words_before("")

    @property
    def words_and_site(self) -> str:
        """For search engines whose only way to name a site is in the query."""
        return self._words_before(f" site:{self.site}" if self.site else "")

    def _words_before(self, ending: str) -> str:
        words = " ".join(self.text.split()[: _MAX_QUERY_WORDS - len(ending.split())])
        return words[: _MAX_QUERY_CHARACTERS - len(ending)].strip() + ending


class SearchProvider(Protocol):
    name: str

    async def search(self, query: WebQuery, *, until: float) -> tuple[Hit, ...]:
        """Best first; () is "nothing found". Raises UpstreamFailed or BudgetSpent."""


Found = tuple[Any, Any, Any]
"""Title, URL, snippet, as they come."""


@dataclass(frozen=True)
class Dialect:
    """How one provider is asked and understood."""

    address: str | None
    """None: there is no common one, RETRIEVER_WEB_URLS must name it."""
    ask: Callable[[str, str, WebQuery], Request]
    """Address, key, query -> request."""
    read: Callable[[Mapping[str, Any]], Iterable[Found]]
    """Raises ValueError for what is not its answer, UpstreamFailed for an answer that tells of a failure."""
    usd_per_request: float
    """List price of the smallest plan, November 2026."""
    requests_per_second: float
    needs_key: bool = True


class Provider:
    """A SearchProvider that speaks one dialect."""

    def __init__(self, dialect: Dialect, upstream: Upstream, *, address: str, key: str = "") -> None:
        self.name = upstream.name
        self._dialect, self._upstream, self._address, self._key = dialect, upstream, address, key

    async def search(self, query: WebQuery, *, until: float) -> tuple[Hit, ...]:
        request = self._dialect.ask(self._address, self._key, query)
        return await self._upstream.ask(request, self._hits, until=until)

    def _hits(self, answer: Any) -> tuple[Hit, ...]:
        if not isinstance(answer, dict):
            raise ValueError(f"{type(answer).__name__} instead of an object")
        found: dict[str, tuple[str, str]] = {}
        for title, url, snippet in self._dialect.read(answer):
            if isinstance(url, str) and url.startswith(("http://", "https://")):
                found.setdefault(_clean(url), (_clean(title), _clean(snippet)))
        return tuple(
            Hit(title=title, url=url, snippet=snippet, score=1.0 / rank, provider=self.name)
            for rank, (url, (title, snippet)) in enumerate(list(found.items())[:NUM_HITS], start=1)
        )


def _clean(text: Any) -> str:
    """One line of valid Unicode; "" for what is no text."""
    return " ".join(text.encode("utf-8", "replace").decode().split()) if isinstance(text, str) else ""


# ---------------------------------------------------------------------------------------------------------------------
# Asking


def _get(address: str, parameters: Mapping[str, Any], **headers: str) -> Request:
    """Parameters that the address has already (Google's cx) stay."""
    parts = urlsplit(address)
    query = urlencode([*parse_qsl(parts.query), *parameters.items()])
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request("GET", urlunsplit(parts._replace(query=query)), {"Accept": "application/json", **named})


def _post(address: str, body: Mapping[str, Any], **headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    kinds = {"Accept": "application/json", "Content-Type": "application/json"}
    return Request("POST", address, {**kinds, **named}, json.dumps(body).encode())


def _ask_serper(address: str, key: str, query: WebQuery) -> Request:
    body = {"q": query.words_and_site, "num": NUM_HITS, "hl": query.language}
    return _post(address, body, X_API_KEY=key)


def _ask_searxng(address: str, key: str, query: WebQuery) -> Request:
    return _get(address, {"q": query.words_and_site, "format": "json", "language": query.language})


def _ask_brave(address: str, key: str, query: WebQuery) -> Request:
    parameters = {
        "q": query.words_and_site,
        "count": NUM_HITS,
        "search_lang": query.language,
        "text_decorations": "false",
    }
    return _get(address, parameters, X_Subscription_Token=key)


def _ask_tavily(address: str, key: str, query: WebQuery) -> Request:
    only = {"include_domains": [query.site]} if query.site else {}
    body = {"query": query.words, "max_results": NUM_HITS, "search_depth": "basic", **only}
    return _post(address, body, Authorization=f"Bearer {key}")


def _ask_exa(address: str, key: str, query: WebQuery) -> Request:
    only = {"includeDomains": [query.site]} if query.site else {}
    body = {"query": query.words, "numResults": NUM_HITS, "contents": {"highlights": True}, **only}
    return _post(address, body, x_api_key=key)


def _ask_serpapi(address: str, key: str, query: WebQuery) -> Request:
    parameters = {"engine": "google", "q": query.words_and_site, "num": NUM_HITS, "hl": query.language}
    return _get(address, {**parameters, "api_key": key})


def _ask_google(address: str, key: str, query: WebQuery) -> Request:
    return _get(address, {"q": query.words_and_site, "num": NUM_HITS, "hl": query.language, "key": key})


# ---------------------------------------------------------------------------------------------------------------------
# Understanding


def _rows(answer: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
    """A list that is not there is an empty one. Where a provider always sends it, `_expect` comes first."""
    rows = answer.get(field, [])
    if not isinstance(rows, list):
        raise ValueError(f"{field}: {type(rows).__name__} instead of a list")
    return [row for row in rows if isinstance(row, dict)]


def _expect(answer: Mapping[str, Any], *fields: str) -> None:
    """An answer without results still shows that it is one."""
    if not any(field in answer for field in fields):
        raise ValueError(f"none of the fields {', '.join(fields)}; {str(answer.get('error', ''))[:100]}".rstrip("; "))


def _box(answer: Mapping[str, Any], field: str, url: str, *texts: str) -> list[Found]:
    """The answer or card above the results, where it names its source."""
    box = answer.get(field)
    if not isinstance(box, dict) or not box.get(url):
        return []
    text = next((box[name] for name in texts if isinstance(box.get(name), str)), "")
    return [(box.get("title"), box[url], text)]


def _read_serper(answer: Mapping[str, Any]) -> list[Found]:
    _expect(answer, "organic", "searchParameters")
    return [
        *_box(answer, "answerBox", "link", "answer", "snippet"),
        *((row.get("title"), row.get("link"), row.get("snippet")) for row in _rows(answer, "organic")),
        *_box(answer, "knowledgeGraph", "descriptionLink", "description"),
    ]


def _read_searxng(answer: Mapping[str, Any]) -> list[Found]:
    _expect(answer, "results")
    rows, silent = _rows(answer, "results"), answer.get("unresponsive_engines")
    if not rows and silent:  # every engine behind it is blocked or down: that is not "nothing found"
        raise UpstreamFailed(Outcome.FAILED, f"its engines do not respond: {str(silent)[:200]}")
    return [(row.get("title"), row.get("url"), row.get("content")) for row in rows]


def _read_brave(answer: Mapping[str, Any]) -> list[Found]:
    _expect(answer, "web", "query")
    web = answer.get("web", {"results": []})  # left out when nothing is found
    if not isinstance(web, dict):
        raise ValueError(f"web: {type(web).__name__} instead of an object")
    _expect(web, "results")
    return [
        (row.get("title"), row.get("url"), _joined(row, "description", "extra_snippets"))
        for row in _rows(web, "results")
    ]


def _read_tavily(answer: Mapping[str, Any]) -> list[Found]:
    _expect(answer, "results")
    return [(row.get("title"), row.get("url"), row.get("content")) for row in _rows(answer, "results")]


def _read_exa(answer: Mapping[str, Any]) -> list[Found]:
    _expect(answer, "results")
    return [(row.get("title"), row.get("url"), _joined(row, "text", "highlights")) for row in _rows(answer, "results")]


def _read_serpapi(answer: Mapping[str, Any]) -> list[Found]:
    _expect(answer, "organic_results", "search_metadata")
    error = answer.get("error")
    if isinstance(error, str) and "hasn't returned any results" not in error:
        raise UpstreamFailed(Outcome.FAILED, error[:200])
    return [
        *_box(answer, "answer_box", "link", "answer", "snippet"),
        *((row.get("title"), row.get("link"), row.get("snippet")) for row in _rows(answer, "organic_results")),
        *((row.get("title"), row.get("link"), row.get("snippet")) for row in _rows(answer, "related_questions")),
    ]


def _read_google(answer: Mapping[str, Any]) -> list[Found]:
    _expect(answer, "items", "searchInformation")
    return [(row.get("title"), row.get("link"), row.get("snippet")) for row in _rows(answer, "items")]


def _joined(row: Mapping[str, Any], text: str, parts: str) -> str:
    """A text and the further pieces of the page that a provider quotes."""
    more = row.get(parts)
    pieces = [row.get(text), *(more if isinstance(more, list) else [])]
    return " … ".join(piece for piece in pieces if isinstance(piece, str) and piece)


DIALECTS: Mapping[ProviderName, Dialect] = {
    "serper": Dialect("https://google.serper.dev/search", _ask_serper, _read_serper, 0.001, 50),
    "searxng": Dialect(None, _ask_searxng, _read_searxng, 0.0, 2, needs_key=False),
    "brave": Dialect("https://api.search.brave.com/res/v1/web/search", _ask_brave, _read_brave, 0.005, 20),
    "tavily": Dialect("https://api.tavily.com/search", _ask_tavily, _read_tavily, 0.008, 1.5),
    "exa": Dialect("https://api.exa.ai/search", _ask_exa, _read_exa, 0.007, 10),
    "serpapi": Dialect("https://serpapi.com/search.json", _ask_serpapi, _read_serpapi, 0.015, 5),
    # Closed to new customers, ends in January 2027. The address carries the engine: …/customsearch/v1?cx=ID
    "google": Dialect(None, _ask_google, _read_google, 0.005, 1),
}
