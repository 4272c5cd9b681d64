"""anyone <-> evaluator: systems x benchmarks -> a report."""

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from searcher.contracts.base import Contract, Name
from searcher.contracts.question import Question, RolloutPlan, SearchMode
from searcher.contracts.weights import WeightVersion


class OpenAIModel(Contract):
    """A model behind an OpenAI-compatible API. Its key is the evaluator's (EVALUATOR_MODEL_API_KEY_FILE)."""

    base_url: str = Field(pattern=r"^https?://[^\s]+$", max_length=1_024)
    """Up to and including `/v1`; must be one of the evaluator's EVALUATOR_MODEL_URLS."""
    model: str = Field(min_length=1, max_length=256)


class System(Contract):
    """What is evaluated: a model and the way it may search. Baselines are systems like any other."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[^\n\r\t]+$")
    """Its column in the report, e.g. "no search", "one search", "policy"."""
    search: SearchMode = SearchMode.MULTI_TURN
    model: OpenAIModel | None = None
    """None: the rollout service's weights."""


POLICY = System(name="policy")
BASELINES = (
    System(name="no search", search=SearchMode.NONE),
    System(name="one search", search=SearchMode.ONCE),
)
"""Beside the policy: what the same weights answer from memory, and from one search with the question itself."""


class Sample(Contract):
    """Which of a benchmark's questions are asked: `size` of them, the same ones for the same seed."""

    size: int = Field(ge=1, le=100_000)
    seed: int = Field(default=0, ge=0)


class EvaluationRequest(Contract):
    """`POST /v1/evaluations`. Sending the same `id` again returns the evaluation that exists."""

    id: Name
    title: str = Field(default="", max_length=256)
    benchmarks: tuple[Name, ...] = Field(default=(), max_length=32)
    """By name (`GET /v1/benchmarks`); or else `questions`, never both."""
    questions: tuple[Question, ...] = Field(default=(), max_length=20_000)
    sample: Sample | None = None
    """Of each benchmark; None: all of it."""
    corpus: Name | None = None
    """Which of the retriever's corpora answers; None: what each question says."""
    systems: tuple[System, ...] = Field(default=(POLICY,), min_length=1, max_length=8)
    plan: RolloutPlan = RolloutPlan(temperature=0.0, stop_at_answer=True)
    """Decoding, k and the number of searches, for every system; each system's `search` overrides the plan's."""
    rules: Name = "searcher"
    """The rule set whose format checks and reward are reported beside EM, cover-EM and F1."""
    judge: bool = False
    """Ask the evaluator's judge too (EVALUATOR_JUDGE_URL), with the published prompt."""
    weights: Name | None = None
    """Evaluate this version only; the evaluation stops with an error if the engines leave it."""
    version: WeightVersion | None = None
    """Bring these weights to the engines that are kept for evaluations (EVALUATOR_VERSIONS_ROLLOUT_URL), and evaluate
    them there while training goes on. One version at a time: the oldest evaluation first."""

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if bool(self.benchmarks) == bool(self.questions):
            raise ValueError("give either benchmarks (names) or questions (a list), not both and not neither")
        for field, values in (("systems", [system.name for system in self.systems]), ("benchmarks", self.benchmarks)):
            repeated = {value for value in values if list(values).count(value) > 1}
            if repeated:
                raise ValueError(f"{field}: {min(repeated)!r} occurs more than once")
        return self


class EvaluationState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class EvaluationStatus(Contract):
    id: str
    state: EvaluationState
    done: int
    """Questions answered; one question for two systems counts twice."""
    total: int
    eta_seconds: float | None = None
    partial: "Metrics | None" = None
    """The figures over the questions answered so far, all systems together."""
    error: str | None = None


class Interval(Contract):
    """Two-sided 95 %, by bootstrap over questions."""

    low: float
    high: float


class Metrics(Contract):
    """Means over questions; every rate is between 0 and 1."""

    num_questions: int
    em: float
    cover_em: float
    """The published rule: every word of a gold answer is in the answer, in any order."""
    cover_em_strict: float
    """The words of a gold answer follow each other in the answer."""
    f1: float
    judge: float | None = None
    """Share that the judge calls right, of those it judged; None where no judge was asked or none answered."""
    num_judged: int = 0
    reward: float
    search_rate: float
    """Questions for which the system searched at least once."""
    searches_mean: float
    format_rate: float
    answered_rate: float
    evidence_rate: float | None = None
    """Questions whose gold passages were all retrieved; None where the data names no gold passages."""
    evidence_recall: float | None = None
    """Share of the gold passages that were retrieved, mean over questions; None as above."""
    evidence_search_mean: float | None = None
    """At which search (1 is the first) the last gold passage came, over questions with all of them."""
    supported_rate: float | None = None
    """Of the answers that were given after a search: share that stands in a passage that was read."""
    response_tokens_mean: float
    intervals: dict[str, Interval] = Field(default_factory=dict)
    """Of the figures above, by name; empty while the evaluation runs."""


class EvaluatedQuestion(Contract):
    """One row of a report: one question, answered by one system."""

    id: str
    benchmark: str = ""
    system: str = POLICY.name
    question: str
    answers: tuple[str, ...]
    hops: int | None
    answer: str | None
    em: float
    cover_em: float
    cover_em_strict: float
    f1: float
    judge: bool | None = None
    """None: not judged."""
    reward: float
    format_ok: bool
    num_searches: int
    queries: tuple[str, ...]
    evidence: bool | None
    """Whether all gold passages were retrieved; None where the data names none."""
    evidence_recall: float | None = None
    evidence_search: int | None = None
    """At which search the last of them came; None unless all did."""
    supported: bool | None = None
    """Whether the answer stands in a passage that was read; None without an answer or without passages."""
    num_tokens: int
    stop_reason: str
    response: str


class SystemReport(Contract):
    """One system's figures."""

    system: System
    overall: Metrics
    by_benchmark: dict[str, Metrics]
    by_hops: dict[str, Metrics]
    """Keyed by hop count as text ("1", "2"); empty where the data does not say."""
    macro: Metrics | None = None
    """Mean over the benchmarks' means, so that a small one counts as much as a large one; None for fewer than two."""


class Comparison(Contract):
    """Two systems on the same questions: a paired test of the mean difference `b - a`."""

    a: str
    b: str
    metric: str
    num_questions: int
    difference: float
    interval: Interval
    p_value: float
    """Two-sided, by random sign flips of the questions' differences."""


class PublishedRow(Contract):
    """What a paper reports for a benchmark, and whether our figure may stand beside it."""

    benchmark: str
    method: str
    source: str
    figures: dict[str, float]
    comparable: bool
    why_not: str = ""
    """What differs (metric, corpus or k), where it is not comparable."""


class Report(Contract):
    """`GET /v1/evaluations/{id}/report`."""

    id: str
    title: str
    weights: str
    """The one version behind all answers of the rollout service; "" if no system used it."""
    plan: RolloutPlan
    rules: str
    corpora: dict[str, str] = Field(default_factory=dict)
    """Corpus -> the index that answered (its manifest's sha256), as far as the retriever told."""
    created_at: str
    seconds: float
    systems: tuple[SystemReport, ...] = Field(min_length=1)
    comparisons: tuple[Comparison, ...] = ()
    published: tuple[PublishedRow, ...] = ()
    missing: tuple[str, ...] = ()
    """What was asked for and is not there, e.g. verdicts of a judge that did not answer. The rest stands."""
    questions: tuple[EvaluatedQuestion, ...]

    @property
    def overall(self) -> Metrics:
        """The first system's."""
        return self.systems[0].overall

    @property
    def by_hops(self) -> dict[str, Metrics]:
        """The first system's."""
        return self.systems[0].by_hops
