"""What the reward service reads from its environment (`REWARD_*`), once, at start."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from searcher.servicekit.settings import ServiceSettings, key_in


class RewardSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="REWARD_", env_ignore_empty=True)

    port: int = Field(default=8002, ge=1, le=65_535)
    max_in_flight: int = Field(default=256, ge=1)
    """Groups being scored at a time; one more is refused with 503, and its client waits and asks again."""
    custom: str | None = None
    """Rule sets of your own: `my_package.rewards:rules` is a `Rules`, several, or a function that returns them."""
    remote_url: str | None = None
    """A reward of your own behind HTTP; the rule set `remote` asks it."""
    remote_key_file: Path | None = None
    """A file with the bearer token that the remote reward wants."""
    remote_timeout_seconds: float = Field(default=20.0, gt=0.0)
    """One group, with its retries. Keep it below what rollout waits for a score (`ROLLOUT_REWARD_SECONDS`)."""
    judge_url: str | None = None
    """An OpenAI-compatible endpoint, up to where `/chat/completions` begins; the rule set `searcher-judge` asks it."""
    judge_model: str | None = None
    judge_key_file: Path | None = None
    """A file with the endpoint's API key."""
    judge_timeout_seconds: float = Field(default=20.0, gt=0.0)
    """All verdicts of a group, with retries and the wait for a place. Who has none by then is not judged."""
    judge_attempts: int = Field(default=3, ge=1, le=20)
    """Calls per verdict at most, where the endpoint is busy, fails or does not answer."""
    judge_concurrency: int = Field(default=16, ge=1, le=1_024)
    """Calls open at a time."""
    judge_cache_entries: int = Field(default=100_000, ge=0)
    """Verdicts remembered, by question, gold answers and answer; about a kilobyte each."""
    dropin_questions: Path | None = None
    """Questions and their answers for `/get_reward`, whose clients send neither."""
    dropin_rules: str = "searcher"
    """The rule set of `/get_reward`."""

    @property
    def remote_key(self) -> str | None:
        return key_in(self.remote_key_file, variable="REWARD_REMOTE_KEY_FILE")

    @property
    def judge_key(self) -> str | None:
        return key_in(self.judge_key_file, variable="REWARD_JUDGE_KEY_FILE")

    @model_validator(mode="after")
    def _judge_has_a_model(self) -> Self:
        if (self.judge_url is None) != (self.judge_model is None):
            raise ValueError("set REWARD_JUDGE_URL and REWARD_JUDGE_MODEL, or neither: a judge needs both")
        return self
