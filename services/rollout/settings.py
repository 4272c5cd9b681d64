"""`ROLLOUT_*`: where the other services are, and how much this one does at once."""

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from searcher.contracts.weights import Purpose
from searcher.servicekit.settings import ServiceSettings


class RolloutSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="ROLLOUT_", env_ignore_empty=True)

    port: int = Field(default=8003, ge=1, le=65_535)
    shutdown_seconds: int = Field(default=5, ge=1)
    """After SIGTERM, requests get this long, then questions of runs as long; leases of the rest are given back."""
    model_dir: Path
    """The policy's model directory; only its tokenizer is read. Must be the one that the engines serve."""
    engines: str = "http://127.0.0.1:8010"
    """URLs of the vLLM engines, separated by commas."""
    retriever_url: str = "http://127.0.0.1:8001"
    reward_url: str = "http://127.0.0.1:8002"
    retriever_seconds: float = Field(default=30.0, gt=0.0)
    """One search, with its retries. Longer is an outage."""
    reward_seconds: float = Field(default=60.0, gt=0.0)
    """Scoring one group, with its retries. Longer is an outage."""
    turn_seconds: float = Field(default=600.0, gt=0.0)
    """One turn in an engine, its time in the queue and in a weight update included. Longer means the engine hangs."""
    probe_seconds: float = Field(default=15.0, gt=0.0)
    """An engine that does not tell its weight version within this time is down. It answers between two steps only."""
    update_seconds: float = Field(default=600.0, gt=0.0)
    """Each step of a weight update, the download included."""
    outage_seconds: float = Field(default=300.0, gt=0.0)
    """How long a turn waits for an engine before its trajectory is dropped. Longer than an engine's start."""
    reconcile_seconds: float = Field(default=0.2, gt=0.0)
    """How often wanted weights are compared with what each engine holds."""
    purpose: Purpose = "training"
    """Whose weights its engines follow. An evaluation's are announced by the evaluator, and no run asks it anything."""
    worker: bool = True
    """Take questions of training runs. False: serve the HTTP routes only."""
    max_concurrent_questions: int = Field(default=64, ge=1)
    """Questions of training runs held at once; each has as many trajectories as the run has samples."""
    lease_seconds: float = Field(default=30.0, ge=1.0)
    """Another worker takes a question over when its holder has not renewed the lease for this long."""
    max_concurrent_requests: int = Field(default=16, ge=1)
    """`/v1/rollouts` and `/v1/ask` at once; more get 503."""
    max_concurrent_trajectories: int = Field(default=256, ge=1)
    """Of all requests together; more wait."""

    @field_validator("engines")
    @classmethod
    def _at_least_one(cls, value: str) -> str:
        if not [url for url in value.split(",") if url.strip()]:
            raise ValueError("ROLLOUT_ENGINES must name at least one URL")
        return value

    @property
    def engine_urls(self) -> tuple[str, ...]:
        return tuple(url.strip().rstrip("/") for url in self.engines.split(",") if url.strip())
