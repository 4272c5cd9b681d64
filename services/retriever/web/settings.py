"""What online search reads from the environment, once, at start."""

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from searcher import __version__
from services.retriever.web.cassette import CassetteMode
from services.retriever.web.providers import DIALECTS, ProviderName
from services.retriever.web.searcher import TextKind

SUMMARISER: Literal["summariser"] = "summariser"
Paid = ProviderName | Literal["summariser"]

_USD_PER_REQUEST: dict[Paid, float] = {
    SUMMARISER: 0.0,
    **{name: dialect.usd_per_request for name, dialect in DIALECTS.items()},
}
_REQUESTS_PER_SECOND: dict[Paid, float] = {
    SUMMARISER: 50.0,
    **{name: dialect.requests_per_second for name, dialect in DIALECTS.items()},
}


class WebSettings(BaseSettings):
    """`RETRIEVER_WEB_*`. To replay a cassette, only `text`, `site`, `language` and the model's name matter."""

    model_config = SettingsConfigDict(
        env_prefix="RETRIEVER_WEB_",
        frozen=True,
        use_attribute_docstrings=True,
        extra="ignore",
        env_ignore_empty=True,
    )

    providers: Annotated[tuple[ProviderName, ...], NoDecode] = ()
    """Who is asked, best first, with commas between: serper, searxng, brave, tavily, exa, serpapi, google. The next one
    is asked when one does not answer."""
    keys_dir: Path | None = None
    """A folder with one file per key, named as the provider (or `summariser`)."""
    urls: dict[ProviderName, str] = Field(default_factory=dict)
    """JSON object of provider -> address, for searxng (…/search), google (…/customsearch/v1?cx=ID), and proxies."""
    usd_per_request: dict[Paid, NonNegativeFloat] = Field(default_factory=dict)
    """JSON object of provider -> price, where yours is not the list price."""
    requests_per_second: dict[Paid, PositiveFloat] = Field(default_factory=dict)
    """JSON object of provider -> rate that your plan allows."""
    budget_usd: NonNegativeFloat = 0.0
    """What the run may spend: the cassette's whole life, or without one this process'. 0: only what is free."""
    provider_seconds: PositiveFloat = 8.0
    """A provider that takes longer has failed; it is tried again, then the next one."""

    text: TextKind = TextKind.SNIPPET
    """What a passage shows: the provider's `snippet`, the `page`'s main text, or one `summary` of the first page that
    says something about the query (R1-Searcher)."""
    site: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+$")] | None = None
    """Only pages of this host: en.wikipedia.org in R1-Searcher's evaluation."""
    language: Annotated[str, Field(pattern=r"^[a-z]{2}$")] = "en"
    max_passage_characters: int = Field(default=2_000, ge=100)
    """Longer texts are cut between two words."""

    summariser_url: str | None = None
    """An OpenAI-compatible endpoint with its /v1."""
    summariser_model: str | None = None
    summariser_seconds: PositiveFloat = 20.0
    max_page_characters: int = Field(default=35_000, ge=1_000)
    """What the summariser reads of a page."""

    page_seconds: PositiveFloat = 10.0
    """To fetch one page, redirects included."""
    max_page_bytes: int = Field(default=5 * 1024 * 1024, ge=1_024)
    """Larger pages are not read."""
    page_processes: int = Field(default=2, ge=1, le=256)
    """Processes that look for pages' main texts; a page of 250 kB takes one about 0.1 s."""
    user_agent: str = f"Searcher/{__version__}"
    """How the page fetcher introduces itself; Wikipedia asks for an address to write to."""
    allowed_addresses: Annotated[tuple[tuple[str, int], ...], NoDecode] = ()
    """Exceptions to the rule that pages come from public addresses and ports 80 and 443: 10.0.0.5:8080, [::1]:80."""

    cassette: Path | None = None
    """A folder of recorded answers."""
    cassette_mode: CassetteMode = CassetteMode.OFF
    """`record`: play what is there, ask and keep the rest. `replay`: only what is there, asking nobody."""
    max_concurrent_queries: int = Field(default=64, ge=1, le=4_096)
    """Others wait for their turn until their deadline."""

    def address_of(self, provider: ProviderName) -> str:
        """Raises ValueError where there is no common one and none is named."""
        address = self.urls.get(provider) or DIALECTS[provider].address
        if address is None:
            raise ValueError(f"RETRIEVER_WEB_URLS: {provider} has no address; name yours")
        return address

    def price_of(self, name: Paid) -> float:
        return self.usd_per_request.get(name, _USD_PER_REQUEST[name])

    def rate_of(self, name: Paid) -> float:
        return self.requests_per_second.get(name, _REQUESTS_PER_SECOND[name])

    def key_of(self, name: Paid) -> SecretStr | None:
        """None where no file is. Raises ValueError for a file that holds no key."""
        path = None if self.keys_dir is None else self.keys_dir / name
        if path is None or not path.is_file():
            return None
        key = path.read_text().strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(f"RETRIEVER_WEB_KEYS_DIR: {path} must hold the key of {name} and nothing else")
        return SecretStr(key)

    def require_complete(self) -> None:
        """Raises ValueError for what RETRIEVER_BACKEND=web cannot do without; the backend `index` needs none of it."""
        asks = self.cassette_mode is not CassetteMode.REPLAY
        if asks and not self.providers:
            raise ValueError("RETRIEVER_WEB_PROVIDERS: name at least one, for example serper")
        if self.text is TextKind.SUMMARY and self.summariser_model is None:
            raise ValueError("RETRIEVER_WEB_SUMMARISER_MODEL: RETRIEVER_WEB_TEXT=summary needs a model")
        if self.text is TextKind.SUMMARY and asks and self.summariser_url is None:
            raise ValueError("RETRIEVER_WEB_SUMMARISER_URL: RETRIEVER_WEB_TEXT=summary needs an endpoint")

    @field_validator("providers", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("allowed_addresses", mode="before")
    @classmethod
    def _addresses(cls, value: Any) -> Any:
        return tuple(_address(text.strip()) for text in value.split(",")) if isinstance(value, str) else value


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    try:
        return str(ip_address(host.strip("[]"))), int(port)
    except ValueError:
        raise ValueError(f"{text!r} is not ADDRESS:PORT, such as 10.0.0.5:8080 or [::1]:80") from None
