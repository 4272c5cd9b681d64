"""What the retriever reads from its environment, once, at start."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from searcher.servicekit.settings import ServiceSettings


class RetrieverSettings(ServiceSettings):
    """`RETRIEVER_*`."""

    model_config = SettingsConfigDict(
        env_prefix="RETRIEVER_", frozen=True, use_attribute_docstrings=True, extra="ignore"
    )

    port: int = Field(default=8001, ge=1, le=65_535)
    index_dir: Path
    """An index (served as corpus `default`), or a folder with one index per corpus, named by its folder."""
    max_batch: int = Field(default=64, ge=1, le=4_096)
    """Queries that the engine takes at once. Higher: more throughput under load, longer steps for those who wait."""
    queue_seconds: float = Field(default=25.0, gt=0.0)
    """Queries that would wait longer than this are refused with 503. Keep it below the callers' timeouts."""
    cache_entries: int = Field(default=100_000, ge=0)
    """Answers kept in memory, about 500 bytes each at k=3; 0 turns the cache off."""
    threads: int | None = Field(default=None, ge=1, le=1_024)
    """Threads of encoder and search; unset: as many as the process may use cores."""
