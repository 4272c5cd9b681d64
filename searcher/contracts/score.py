"""rollout <-> reward: trajectories -> a total and its named parts."""

from typing import Literal

from pydantic import Field

from searcher.contracts.base import Contract, Name, ShortText


class TextSegment(Contract):
    """A piece of a response with its provenance; rules judge `policy` text and ignore `documents` text."""

    source: Literal["policy", "documents"]
    text: str = Field(max_length=1_048_576)


class ScoreItem(Contract):
    """One trajectory to score. Scored by its id; the question's text is never looked up."""

    id: str = Field(max_length=256)
    question: ShortText
    answers: tuple[ShortText, ...] = Field(min_length=1, max_length=256)
    segments: tuple[TextSegment, ...] = Field(max_length=256)
    num_searches: int = Field(default=0, ge=0)
    """Searches that the system really made (a fake document block does not count)."""


class ScoreRequest(Contract):
    """`POST /v1/score`: the trajectories of one group (some rules compare within the group)."""

    rules: Name = "searcher"
    items: tuple[ScoreItem, ...] = Field(min_length=1, max_length=1_024)


class Score(Contract):
    """A reward that can be explained: `total` is the sum of `parts`, up to the rule set's documented clipping."""

    total: float
    parts: dict[str, float]
    """Named addends of the total, e.g. {"answer_f1": 0.67, "format": -2.0}."""
    answer: str | None
    """What the policy answered; None if it gave no answer."""
    em: float
    cover_em: float
    f1: float
    format_ok: bool
    """Whether the response passes the rule set's format checks."""
    format_errors: tuple[str, ...] = ()
    """Names of the checks that failed, for metrics and reports."""


class ScoreResponse(Contract):
    rules: str
    scores: tuple[Score, ...]
    """In the order of the request's items."""


class RuleSet(Contract):
    """One row of `GET /v1/rules`."""

    name: str
    description: str
    parts: tuple[str, ...]
