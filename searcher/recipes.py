"""recipe.toml -> Recipe, and question files -> questions. Paths in a recipe are relative to the recipe's file."""

import gzip
import json
import random
import tomllib
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TextIO

from pydantic import ValidationError

from searcher.contracts.errors import InvalidInput
from searcher.contracts.question import Question
from searcher.contracts.recipe import Recipe


def load_recipe(path: Path) -> Recipe:
    """Raises InvalidInput that names the file and every wrong field."""
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such recipe; see `ls recipes/`") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path}: not valid TOML: {error}") from None
    return parse_recipe(table, source=str(path), base=path.parent)


def parse_recipe(table: dict[str, Any], *, source: str, base: Path) -> Recipe:
    try:
        recipe = Recipe.model_validate(table)
    except ValidationError as error:
        raise InvalidInput(f"{source}: {explain(error)}") from None
    return _with_absolute_paths(recipe, base.resolve())


def load_questions(path: Path, *, corpus: str = "default", limit: int | None = None) -> list[Question]:
    """JSONL, gzipped or plain -> questions. Raises InvalidInput with file and line for anything malformed.

    `idx` is read as `id`; where neither is there, the line number serves.
    """
    questions: list[Question] = []
    for number, line in _numbered_lines(path):
        if limit is not None and len(questions) >= limit:
            break
        try:
            row = json.loads(line)
            known = {key: row[key] for key in ("question", "answer", "answers", "golden_answers") if key in row}
            extra = {"hops": row.get("hops"), "gold_ids": tuple(row.get("gold_ids") or ()), "corpus": corpus}
            questions.append(
                Question.model_validate({"id": str(row.get("id", row.get("idx", number))), **known, **extra})
            )
        except ValidationError as error:
            raise InvalidInput(f"{path}:{number}: {explain(error)}") from None
        except (json.JSONDecodeError, AttributeError) as error:
            raise InvalidInput(f"{path}:{number}: not a JSON object: {error}") from None
    if not questions:
        raise InvalidInput(f"{path}: holds no questions")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise InvalidInput(f"{path}: the id {question.id!r} occurs twice; ids must be unique")
        seen.add(question.id)
    return questions


def balanced_sample(questions: Sequence[Question], count: int, *, seed: int) -> list[Question]:
    """A fixed sample with as many questions of each hop count as there are; all questions if there are no more."""
    by_hops: dict[int | None, list[Question]] = {}
    for question in random.Random(seed).sample(questions, len(questions)):
        by_hops.setdefault(question.hops, []).append(question)
    in_turn = chain.from_iterable(zip_longest(*(by_hops[hops] for hops in sorted(by_hops, key=str))))
    return [question for question in in_turn if question is not None][:count]


def explain(error: ValidationError) -> str:
    """One line per wrong field: where, what is wrong, what was given."""
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'recipe'}: {problem['msg']}" for problem in error.errors()
    )


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with _open_text(path) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such file") from None
    except (UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise InvalidInput(f"{path}: not UTF-8 text: {error}") from None


def _open_text(path: Path) -> TextIO:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _with_absolute_paths(recipe: Recipe, base: Path) -> Recipe:
    def absolute(value: str) -> str:
        return str((base / value).resolve())

    evaluation = recipe.evaluation
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"path": absolute(recipe.model.path)}),
            "corpora": {
                name: corpus.model_copy(update={"source": absolute(corpus.source)})
                for name, corpus in recipe.corpora.items()
            },
            "stages": tuple(s.model_copy(update={"questions": absolute(s.questions)}) for s in recipe.stages),
            "evaluation": evaluation and evaluation.model_copy(update={"questions": absolute(evaluation.questions)}),
        }
    )
