"""What the reward service reads from its environment (`REWARD_*`), once, at start."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from searcher.servicekit.settings import ServiceSettings


class RewardSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="REWARD_")

    port: int = Field(default=8002, ge=1, le=65_535)
    max_in_flight: int = Field(default=256, ge=1)
    """Groups being scored at a time; one more is refused with 503, and its client waits and asks again."""
