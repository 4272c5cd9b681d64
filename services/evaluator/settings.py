"""Environment -> the evaluator's settings; the API and its workers read the same ones."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from searcher.servicekit.settings import ServiceSettings


class EvaluatorSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="EVALUATOR_")

    port: int = Field(default=8005, ge=1, le=65_535)
    rollout_url: str = "http://127.0.0.1:8003"
    """Whose trajectories are evaluated."""
    data_dir: Path = Path(".searcher/evaluations")
    """Finished reports: `<id>/report.json` and `<id>/report.html`. Only the API writes here."""
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
    """An evaluation that rollout did not answer for this long fails."""
    max_crashes: int = Field(default=10, ge=1)
    """A chunk that ended its worker this often fails its evaluation."""
    max_open: int = Field(default=64, ge=1)
    """Evaluations that may be queued or running; one more is refused with 503."""
    keep_seconds: int = Field(default=7 * 24 * 3600, ge=60)
    """How long Redis remembers a closed evaluation. Reports on disk stay."""
