"""What the `searcher` command reads from its environment: where the deployment lives and which services to ask."""

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict

PROJECT_ROOT = Path(__file__).resolve().parents[2]


class CliSettings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="SEARCHER_", frozen=True, use_attribute_docstrings=True, extra="ignore"
    )

    state_dir: Path = PROJECT_ROOT / ".searcher"
    """Logs, indexes and weights of the embedded deployment."""
    runs_dir: Path = PROJECT_ROOT / "runs"
    """Checkpoints, metrics and trajectories of its training runs."""
    engine_python: Path = PROJECT_ROOT / ".venv-engine" / "bin" / "python"
    """The interpreter of the environment that holds vLLM."""
    trainer_url: str | None = None
    """Ask this trainer instead of the embedded one; likewise the two below."""
    rollout_url: str | None = None
    evaluator_url: str | None = None
