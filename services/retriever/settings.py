"""What the retriever reads from its environment, once, at start."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from searcher.servicekit.settings import ServiceSettings
from services.retriever.web.settings import WebSettings


class RetrieverSettings(ServiceSettings):
    """`RETRIEVER_*`."""

    model_config = SettingsConfigDict(
        env_prefix="RETRIEVER_", frozen=True, use_attribute_docstrings=True, extra="ignore"
    )

    port: int = Field(default=8001, ge=1, le=65_535)
    backend: Literal["index", "web"] = "index"
    """What answers: indexes in a folder here, or search engines of the web."""
    index_dir: Path | None = None
    """An index (served as corpus `default`), or a folder with one index per corpus, named by its folder."""
    max_batch: int = Field(default=64, ge=1, le=4_096)
    """Queries that the engine takes at once. Higher: more throughput under load, longer steps for those who wait."""
    bulk_slice: int = Field(default=16, ge=1, le=4_096)
    """Queries of large requests in a batch while small ones come too."""
    interactive_queries: int = Field(default=16, ge=1, le=512)
    """Requests with more queries than this are large: they go through the bulk lane."""
    deadline_seconds: float = Field(default=25.0, gt=0.0, le=3_600.0)
    """For requests without X-Request-Timeout. What cannot be answered in it is refused with 503. Keep it below the
    callers' timeouts."""
    cache_entries: int = Field(default=100_000, ge=0)
    """Answers kept in memory, about 300 bytes each at k=3; 0 turns the cache off."""
    redis_cache: bool = False
    """Share answers with replicas through the Redis of SEARCHER_REDIS_URL. Its failures cost nothing but hits."""
    threads: int | None = Field(default=None, ge=1, le=1_024)
    """Threads of encoder and search; unset: as many as the process may use cores."""
    encoder_url: str | None = None
    """For indexes whose encoder is a server (`openai-http`): ask this one, not the one they were built with."""
    encoder_key_file: Path | None = None
    """Holds that server's bearer token."""
    drain_seconds: float = Field(default=3.0, ge=0.0)
    """After SIGTERM requests are answered for so long, each asked to connect anew, which leads to another replica."""
    watch_seconds: float = Field(default=5.0, ge=0.0)
    """How often to look whether a corpus' folder or `current` link leads to another index; 0: never."""

    web: WebSettings = Field(default_factory=WebSettings)
    """`RETRIEVER_WEB_*`, for the backend `web`."""

    @property
    def encoder_key(self) -> SecretStr | None:
        """Raises ValueError for a file that holds no key."""
        if self.encoder_key_file is None:
            return None
        key = self.encoder_key_file.read_text().strip() if self.encoder_key_file.is_file() else ""
        if not key:
            raise ValueError(f"RETRIEVER_ENCODER_KEY_FILE: {self.encoder_key_file} must hold a key")
        return SecretStr(key)

    @model_validator(mode="after")
    def _something_to_serve(self) -> Self:
        if self.backend == "index" and self.index_dir is None:
            raise ValueError("RETRIEVER_INDEX_DIR is not set: name an index, built with `searcher index build`")
        return self
