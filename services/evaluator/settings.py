"""Environment -> the evaluator's settings; the API and its workers read the same ones."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from searcher.servicekit.settings import ServiceSettings, key_in


class EvaluatorSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="EVALUATOR_", env_ignore_empty=True)

    port: int = Field(default=8005, ge=1, le=65_535)
    rollout_url: str = "http://127.0.0.1:8003"
    """Whose trajectories are evaluated."""
    versions_rollout_url: str | None = None
    """A rollout service whose engines are kept for evaluations (ROLLOUT_PURPOSE=evaluation): it evaluates the versions
    that requests bring with them."""
    retriever_url: str = "http://127.0.0.1:8001"
    """Told which corpora there are, and asked by models behind an API."""
    reward_url: str = "http://127.0.0.1:8002"
    """Told which rule sets there are, and scores what models behind an API answered."""
    data_dir: Path = Path(".searcher/evaluations")
    """Finished reports: `<id>/report.json` and `<id>/report.html`. Only the API writes here."""
    benchmarks_dir: Path = Path(".searcher/benchmarks")
    """Question files of the benchmarks; `GET /v1/benchmarks` tells their names. Only the API reads here."""
    max_answers: int = Field(default=200_000, ge=1)
    """Questions x systems of one evaluation; Redis holds all answers until the report is written."""
    chunk_size: int = Field(default=32, ge=1, le=512)
    """Questions per task: what one request to rollout asks, and what a killed worker loses."""
    chunks_in_flight: int = Field(default=4, ge=1, le=256)
    """Chunks of one evaluation that may wait or run at a time, so that a long evaluation cannot starve a short one."""
    worker_concurrency: int = Field(default=4, ge=1, le=256)
    """Chunks that one worker process runs at a time."""
    worker_metrics_port: int = Field(default=0, ge=0, le=65_535)
    """Where a worker serves its Prometheus metrics; 0: nowhere."""
    lease_seconds: float = Field(default=10.0, ge=0.2)
    """A chunk whose worker was silent for this long is sent again."""
    reconcile_seconds: float = Field(default=2.0, ge=0.05)
    """How often the API looks for chunks to send again and for evaluations to close."""
    rollout_timeout_seconds: float = Field(default=600.0, ge=1.0)
    """One chunk's trajectories must be there by then."""
    weights_wait_seconds: float = Field(default=30.0, ge=0.0)
    """Demanded weights that were just announced may take this long to reach the engines."""
    outage_seconds: float = Field(default=1_800.0, ge=0.0)
    """An evaluation that rollout, or the model it is about, did not answer for this long fails."""
    max_crashes: int = Field(default=10, ge=1)
    """A chunk that ended its worker this often fails its evaluation."""
    max_open: int = Field(default=64, ge=1)
    """Evaluations that may be queued or running; one more is refused with 503."""
    keep_seconds: int = Field(default=7 * 24 * 3600, ge=60)
    """How long Redis remembers a closed evaluation. Reports on disk stay."""

    model_urls: Annotated[tuple[str, ...], NoDecode] = ()
    """OpenAI-compatible endpoints, up to and including `/v1`, separated by commas: the only ones that a request may
    have evaluated. They are sent the key."""
    model_api_key_file: Path | None = None
    """A file that holds the key for them."""
    model_timeout_seconds: float = Field(default=120.0, gt=0.0)
    """One turn of such a model, with its retries. Longer is an outage."""
    model_concurrency: int = Field(default=8, ge=1, le=512)
    """Questions of one chunk that such a model is asked at a time."""
    judge_url: str | None = None
    """An OpenAI-compatible endpoint, up to and including `/v1`, that judges answers. Unset: nobody does."""
    judge_model: str = "gpt-4o-mini"
    judge_api_key_file: Path | None = None
    """A file that holds the judge's key."""
    judge_timeout_seconds: float = Field(default=30.0, gt=0.0)
    """One verdict, with its retries. Longer counts as none."""

    @field_validator("model_urls", mode="before")
    @classmethod
    def _separated_by_commas(cls, value: object) -> object:
        urls = value.split(",") if isinstance(value, str) else value
        return tuple(str(url).strip().rstrip("/") for url in urls if str(url).strip()) if urls else ()  # type: ignore[attr-defined]

    @property
    def model_api_key(self) -> str | None:
        return key_in(self.model_api_key_file, variable="EVALUATOR_MODEL_API_KEY_FILE")

    @property
    def judge_api_key(self) -> str | None:
        return key_in(self.judge_api_key_file, variable="EVALUATOR_JUDGE_API_KEY_FILE")
