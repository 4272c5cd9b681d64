"""anyone <-> evaluator: weights x benchmark -> a report."""

from enum import StrEnum

from pydantic import Field

from searcher.contracts.base import Contract, Name
from searcher.contracts.question import Question, RolloutPlan


class EvaluationRequest(Contract):
    """`POST /v1/evaluations`. Sending the same `id` again returns the evaluation that exists."""

    id: Name
    title: str = Field(default="", max_length=256)
    questions: tuple[Question, ...] = Field(min_length=1, max_length=20_000)
    plan: RolloutPlan = RolloutPlan(temperature=0.0, stop_at_answer=True)
    rules: Name = "searcher"
    """The rule set whose format checks and reward are reported beside EM, cover-EM and F1."""
    weights: Name | None = None
    """Evaluate this version only; the evaluation stops with an error if the engines leave it."""


class EvaluationState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class EvaluationStatus(Contract):
    id: str
    state: EvaluationState
    done: int
    total: int
    eta_seconds: float | None = None
    partial: "Metrics | None" = None
    """The figures over the questions answered so far."""
    error: str | None = None


class Metrics(Contract):
    """Means over questions; every rate is between 0 and 1."""

    num_questions: int
    em: float
    cover_em: float
    f1: float
    reward: float
    search_rate: float
    """Questions for which the policy searched at least once."""
    searches_mean: float
    format_rate: float
    answered_rate: float
    evidence_rate: float | None = None
    """Questions whose gold passages were all retrieved; None where the data names no gold passages."""
    response_tokens_mean: float


class EvaluatedQuestion(Contract):
    """One row of a report."""

    id: str
    question: str
    answers: tuple[str, ...]
    hops: int | None
    answer: str | None
    em: float
    cover_em: float
    f1: float
    reward: float
    format_ok: bool
    num_searches: int
    queries: tuple[str, ...]
    evidence: bool | None
    num_tokens: int
    stop_reason: str
    response: str


class Report(Contract):
    """`GET /v1/evaluations/{id}/report`."""

    id: str
    title: str
    weights: str
    plan: RolloutPlan
    rules: str
    created_at: str
    seconds: float
    overall: Metrics
    by_hops: dict[str, Metrics]
    """Keyed by hop count as text ("1", "2"); empty where the data does not say."""
    questions: tuple[EvaluatedQuestion, ...]
