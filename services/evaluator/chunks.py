"""A request and its questions -> an outline, and the chunks that workers take. Keeping them is left to jobs.py."""

import datetime as dt
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from searcher.contracts.base import Contract
from searcher.contracts.question import Question, RolloutPlan, SearchMode
from searcher.contracts.report import EvaluatedQuestion, EvaluationRequest, System
from searcher.contracts.weights import WeightVersion

Questions = Mapping[str, tuple[Question, ...]]
"""By benchmark; those that came with the request are under ""."""


class Outline(Contract):
    """An evaluation without its questions."""

    id: str
    title: str
    systems: tuple[System, ...]
    plan: RolloutPlan
    rules: str
    judge: bool
    weights: str | None
    version: WeightVersion | None
    corpora: tuple[str, ...]
    """Those that are searched."""
    indexes: dict[str, str]
    """What was behind each corpus when the evaluation began, as far as the retriever told."""

    @property
    def demanded_weights(self) -> str | None:
        return self.version.name if self.version else self.weights


class Chunk(Contract):
    """Some questions of one benchmark for one system."""

    system: str
    benchmark: str
    questions: tuple[Question, ...]

    @property
    def keys(self) -> dict[str, str]:
        """Where each question's answer is kept, by the question's id. Different for everything different: the names of
        systems and benchmarks have no tab."""
        return {question.id: f"{self.system}\t{self.benchmark}\t{question.id}" for question in self.questions}


@dataclass(frozen=True)
class Claim:
    """A chunk this owner holds the lease of."""

    evaluation_id: str
    number: int
    owner: str
    outline: Outline
    chunk: Chunk
    num_answered: int
    """Answers that the evaluation had by then."""

    @property
    def system(self) -> System:
        return next(system for system in self.outline.systems if system.name == self.chunk.system)


@dataclass(frozen=True)
class Answered:
    """An evaluation that is done, as it is remembered."""

    outline: Outline
    rows: tuple[EvaluatedQuestion, ...]
    """By system, benchmark and question in the order asked."""
    weights: str
    created_at: dt.datetime
    seconds: float
    corpora: Mapping[str, frozenset[str]]
    """Which ones the questions of each benchmark are for."""
    not_judged: str
    """Why answers have no verdict, where the judge did not answer."""


def digest(request: EvaluationRequest) -> str:
    """Equal exactly for requests of equal content."""
    return hashlib.sha256(request.model_dump_json().encode()).hexdigest()


def outline_of(request: EvaluationRequest, questions: Questions, indexes: Mapping[str, str]) -> Outline:
    corpora = sorted(searched_corpora(request.systems, questions))
    return Outline(
        id=request.id,
        title=request.title,
        systems=request.systems,
        plan=request.plan,
        rules=request.rules,
        judge=request.judge,
        weights=request.weights,
        version=request.version,
        corpora=tuple(corpora),
        indexes={name: indexes[name] for name in corpora if name in indexes},
    )


def chunks_of(systems: Iterable[System], questions: Questions, *, size: int) -> list[Chunk]:
    """Of at most `size` questions each; those of a system follow each other."""
    return [
        Chunk(system=system.name, benchmark=benchmark, questions=asked[start : start + size])
        for system in systems
        for benchmark, asked in questions.items()
        for start in range(0, len(asked), size)
    ]


def searched_corpora(systems: Iterable[System], questions: Questions) -> set[str]:
    if all(system.search is SearchMode.NONE for system in systems):
        return set()
    return {question.corpus for asked in questions.values() for question in asked}
