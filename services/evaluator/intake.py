"""A request -> the questions of each benchmark, or the reason why it is refused.

What is wrong is said now and not by a worker: names are looked up, files are read, and the services that know the rule
sets and the corpora are asked. One that does not answer stops nobody: the workers will find out.
"""

import asyncio
import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import ValidationError

from searcher.clients.retriever import RetrieverClient
from searcher.clients.reward import RewardClient
from searcher.contracts.errors import InvalidInput, SearcherError, TooLarge
from searcher.contracts.question import Question
from searcher.contracts.report import EvaluationRequest, Sample
from searcher.contracts.score import RuleSet
from searcher.qa.prompt import template_named
from searcher.questions import load_questions
from searcher.recipes import explain
from services.evaluator.benchmarks import load_benchmark
from services.evaluator.chunks import Questions, searched_corpora
from services.evaluator.settings import EvaluatorSettings

log = structlog.get_logger()


@dataclass(frozen=True)
class Intake:
    settings: EvaluatorSettings
    retriever: RetrieverClient
    reward: RewardClient

    async def questions(self, request: EvaluationRequest) -> tuple[Questions, Mapping[str, str]]:
        """The questions, and the index behind each corpus as far as the retriever tells. Raises InvalidInput."""
        self._refuse_what_is_not_set_up(request)
        template_named(request.plan.template)
        _refuse_bad_rows(request.questions)
        questions = await asyncio.to_thread(chosen, request, self.settings.benchmarks_dir)
        self._refuse_too_many(request, questions)
        rules, indexes = await asyncio.gather(self._rules(), self.indexes())
        if rules is not None and request.rules not in rules:
            raise InvalidInput(f"rules: no rule set {request.rules!r}; known: {', '.join(sorted(rules))}")
        if indexes is not None:
            for name in sorted(searched_corpora(request.systems, questions) - indexes.keys()):
                field = "corpus" if request.corpus else _first_row_of(name, questions)
                known = ", ".join(sorted(indexes))
                raise InvalidInput(f"{field}: the retriever has no corpus {name!r}; it has {known}")
        return questions, indexes or {}

    async def indexes(self) -> dict[str, str] | None:
        """The index behind each of the retriever's corpora; None if it does not tell."""
        try:
            rows = await self.retriever.get("/v1/corpora")
            return {str(row["name"]): str(row["index"]) for row in rows}
        except (SearcherError, LookupError, TypeError, ValueError) as error:
            log.warning("corpora not known", error=str(error))
            return None

    async def _rules(self) -> set[str] | None:
        try:
            rows = [RuleSet.model_validate(row) for row in await self.reward.get("/v1/rules")]
        except (SearcherError, TypeError, ValueError) as error:
            log.warning("rule sets not known", error=str(error))
            return None
        return {name for row in rows for name in (row.name, *row.aliases)}

    def _refuse_what_is_not_set_up(self, request: EvaluationRequest) -> None:
        if request.judge and not self.settings.judge_url:
            raise InvalidInput("judge: EVALUATOR_JUDGE_URL is not set, so nobody can be asked; set it, or send false")
        if request.version:
            if not self.settings.versions_rollout_url:
                raise InvalidInput("version: EVALUATOR_VERSIONS_ROLLOUT_URL is not set; send `weights`, or nothing")
            if request.weights not in (None, request.version.name):
                raise InvalidInput(f"weights: {request.weights!r} is not the version sent, {request.version.name!r}")
        for at, system in enumerate(request.systems):
            if system.model and system.model.base_url.rstrip("/") not in self.settings.model_urls:
                known = ", ".join(self.settings.model_urls) or "nothing"
                raise InvalidInput(
                    f"systems.{at}.model.base_url: {system.model.base_url!r} is not in EVALUATOR_MODEL_URLS ({known})"
                )

    def _refuse_too_many(self, request: EvaluationRequest, questions: Questions) -> None:
        count, limit = sum(map(len, questions.values())) * len(request.systems), self.settings.max_answers
        if count > limit:
            raise TooLarge(
                f"sample: {count} answers are asked for, and {limit} are allowed (EVALUATOR_MAX_ANSWERS); "
                "take a sample, or fewer systems"
            )


def uploaded(request: str, file: bytes) -> EvaluationRequest:
    """A request as JSON and its question file. Raises InvalidInput that names the field, or the file's line."""
    with tempfile.NamedTemporaryFile() as copy:
        copy.write(file)
        copy.flush()
        try:
            questions = load_questions(Path(copy.name))
        except InvalidInput as error:
            raise InvalidInput(error.detail.replace(copy.name, "body")) from None
    try:
        fields = json.loads(request)
        return EvaluationRequest.model_validate({**fields, "questions": questions})
    except ValidationError as error:
        raise InvalidInput(f"request: {explain(error)}") from None
    except (ValueError, TypeError):
        raise InvalidInput(f"request: wanted a JSON object, got {request:.80}") from None


def chosen(request: EvaluationRequest, folder: Path) -> dict[str, tuple[Question, ...]]:
    """The request's questions by benchmark: loaded, sampled, and asked of the request's corpus if it names one."""
    given = {name: load_benchmark(name, folder) for name in request.benchmarks} or {"": request.questions}
    drawn = {name: sampled(name, questions, request.sample) for name, questions in given.items()}
    if request.corpus is None:
        return drawn
    corpus = {"corpus": request.corpus}
    return {name: tuple(q.model_copy(update=corpus) for q in questions) for name, questions in drawn.items()}


def sampled(name: str, questions: Sequence[Question], sample: Sample | None) -> tuple[Question, ...]:
    """In the order of the file; which ones depends on the benchmark, the seed and the size alone."""
    if sample is None or sample.size >= len(questions):
        return tuple(questions)
    drawn = random.Random(f"{sample.seed}/{name}").sample(range(len(questions)), sample.size)
    return tuple(questions[at] for at in sorted(drawn))


def _refuse_bad_rows(questions: Sequence[Question]) -> None:
    rows: dict[str, int] = {}
    for at, question in enumerate(questions):
        if rows.setdefault(question.id, at) != at:
            raise InvalidInput(f"questions.{at}.id: {question.id!r} is the id of questions.{rows[question.id]} already")
        if not question.question.strip():
            raise InvalidInput(f"questions.{at}.question: is blank")
        for number, answer in enumerate(question.answers):
            if not answer.strip():
                raise InvalidInput(f"questions.{at}.answers.{number}: is blank")


def _first_row_of(corpus: str, questions: Questions) -> str:
    return next(
        f"{name or 'questions'}.{at}.corpus"
        for name, rows in questions.items()
        for at, question in enumerate(rows)
        if question.corpus == corpus
    )
