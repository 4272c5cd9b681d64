"""What every service reads from its environment, once, at start. A service's own settings inherit from this."""

from ipaddress import ip_address
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class SharedSettings(BaseSettings):
    """`SEARCHER_*`: the same for all services of one deployment."""

    model_config = SettingsConfigDict(
        env_prefix="SEARCHER_", frozen=True, use_attribute_docstrings=True, extra="ignore"
    )

    api_key_file: Path | None = None
    """A file that holds the bearer token which clients must send and services require."""
    admin_key_file: Path | None = None
    """A file that holds the bearer token of those who may change what a service serves. Unset: nobody may."""
    redis_url: str = "redis://127.0.0.1:6379/0"
    log_level: str = "INFO"
    log_json: bool = False
    """JSON lines for collectors instead of coloured lines for people."""

    @property
    def api_key(self) -> str | None:
        """The token; None if no file is configured. Raises ValueError for an empty file."""
        return key_in(self.api_key_file, variable="SEARCHER_API_KEY_FILE")

    @property
    def admin_key(self) -> str | None:
        """Likewise. It also opens what the other token opens."""
        return key_in(self.admin_key_file, variable="SEARCHER_ADMIN_KEY_FILE")

    @field_validator("api_key_file", "admin_key_file", mode="before")
    @classmethod
    def _blank_is_unset(cls, value: object) -> object:
        """An empty variable (as compose files produce it) means: not configured."""
        return None if value == "" else value


def key_in(file: Path | None, *, variable: str) -> str | None:
    """Read anew each time: a key may change. Raises ValueError for an empty file, OSError for a missing one."""
    if file is None:
        return None
    key = file.read_text().strip()
    if not key:
        raise ValueError(f"{variable}: {file} is empty; write the key into it")
    return key


class ServiceSettings(BaseSettings):
    """Where a service listens and how it winds down. Subclasses set `env_prefix` to their own name and `port`."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True, extra="ignore")

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65_535)
    max_body_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    drain_seconds: float = Field(default=0.0, ge=0.0)
    """After SIGTERM: report not ready for this long before connections close, so that load balancers look away."""
    shutdown_seconds: int = Field(default=30, ge=1)
    """Work in hand may take this long to finish after the drain."""
    shared: SharedSettings = Field(default_factory=SharedSettings)

    @property
    def is_loopback(self) -> bool:
        return self.host == "localhost" or ip_address(self.host).is_loopback

    @model_validator(mode="after")
    def _no_open_door(self) -> Self:
        if not self.is_loopback and self.shared.api_key is None:
            raise ValueError(
                f"host {self.host} is reachable from outside, but SEARCHER_API_KEY_FILE is not set: "
                "write a token to a file and name it there, or bind to 127.0.0.1"
            )
        return self
