"""`TRAINER_*`: where runs live, where weights go, whom to ask for evaluations, how stubborn to be."""

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from searcher.servicekit.settings import ServiceSettings


class TrainerSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="TRAINER_", frozen=True, use_attribute_docstrings=True, extra="ignore")

    port: int = Field(default=8004, ge=1, le=65_535)
    runs_dir: Path = Path("runs")
    """One folder per run. On several machines: a volume that all of a run's processes share."""
    weights_dir: Path | None = None
    """Where versions are published; unset: in the run's folder. Memory (`/dev/shm/…`) is fastest on one machine."""
    keep_weights: int = Field(default=3, ge=1)
    """Published versions that stay on disk."""
    public_url: str | None = None
    """This service as engines on other machines reach it. Set: weights are announced as downloads from here; unset:
    as files, which engines must be able to open."""
    evaluator_url: str | None = "http://127.0.0.1:8005"
    """Unset: recipes that ask for evaluations train without them (an event says so)."""
    retriever_url: str | None = "http://127.0.0.1:8001"
    """Asked which indexes a run searches and how exact they are, for the run's events. Unset: not noted."""
    evaluation_timeout_seconds: float = Field(default=1_800.0, gt=0)
    """An evaluation that takes longer is skipped; training waits no longer than this."""
    max_restarts: int = Field(default=5, ge=0)
    """Crashes in a row, without a new step between them, after which a run is given up as failed."""
    restart_backoff_seconds: float = Field(default=1.0, ge=0)
    """Before the first restart; doubles with each crash in a row, up to a minute."""
    stop_seconds: float = Field(default=120.0, gt=0)
    """A training process that was asked to stop may finish its step and checkpoint for this long; then it is killed."""

    @field_validator("weights_dir", "public_url", "evaluator_url", "retriever_url", mode="before")
    @classmethod
    def _blank_is_unset(cls, value: object) -> object:
        """An empty variable (as compose files produce it) means: not configured."""
        return None if value == "" else value

    def environment(self) -> dict[str, str]:
        """These settings as variables, for the training process."""
        own = {f"TRAINER_{name.upper()}": value for name, value in self.model_dump(exclude={"shared"}).items()}
        shared = {f"SEARCHER_{name.upper()}": value for name, value in self.shared.model_dump().items()}
        return {name: "" if value is None else str(value) for name, value in {**own, **shared}.items()}
