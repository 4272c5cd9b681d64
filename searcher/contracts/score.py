"""rollout <-> reward: trajectories -> a total and its named parts."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from searcher.contracts.base import Contract, Name, ShortText


def _one_answer_is_a_list_of_one(value: Any) -> Any:
    many = value if isinstance(value, list | tuple) else [value]
    return [
        "yes" if gold is True else "no" if gold is False else str(gold) if isinstance(gold, int | float) else gold
        for gold in many
    ]


GoldAnswers = Annotated[
    tuple[ShortText, ...], BeforeValidator(_one_answer_is_a_list_of_one), Field(min_length=1, max_length=256)
]
"""Accepted answers and their aliases: a list, or one alone. Booleans mean yes and no; numbers become text."""


class TextSegment(Contract):
    """A piece of a response with its provenance. Rules that do not read documents see that some stood here, no more."""

    source: Literal["policy", "documents"]
    text: str = Field(max_length=1_048_576)


class ScoreItem(Contract):
    """One trajectory to score. It brings its gold answers: the question's text is never looked up."""

    id: str = Field(max_length=256)
    """Unique in its request; the response names it again."""
    question: ShortText
    answers: GoldAnswers
    segments: tuple[TextSegment, ...] = Field(max_length=256)
    num_searches: int = Field(default=0, ge=0)
    """Searches that the system really made (a fake document block does not count)."""


class ScoreRequest(Contract):
    """`POST /v1/score`: the trajectories of one group (some rules compare within the group)."""

    rules: Name = "searcher"
    items: tuple[ScoreItem, ...] = Field(min_length=1, max_length=1_024)


class Verdict(StrEnum):
    """What a model that was asked to judge an answer makes of it."""

    RIGHT = "right"
    WRONG = "wrong"
    NOT_ASKED = "not_asked"
    """There is no answer, or its format is wrong: the reward is known without asking."""
    NOT_JUDGED = "not_judged"
    """The judge gave no verdict. The whole group then earns the rule set's fallback, so that it is of one measure."""


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
    judge: Verdict | None = None
    """None if the rule set has no judge."""


class ScoreResponse(Contract):
    rules: str
    scores: tuple[Score, ...]
    """In the order of the request's items."""
    ids: tuple[str, ...] = ()
    """The items' ids, in the same order."""


class RuleSet(Contract):
    """One row of `GET /v1/rules`."""

    name: str
    description: str
    parts: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    """Other names under which it can be asked for."""
    reads_documents: bool = True
    """False: only the policy's own text is judged, so the text of documents segments may be left empty."""
    compares: bool = False
    """Whether a score depends on the other trajectories of its group, which must be all of one question then."""
