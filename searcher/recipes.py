"""recipe.toml -> Recipe. Paths in a recipe are relative to its file. `searcher.questions` reads the question files."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from searcher.contracts.errors import InvalidInput
from searcher.contracts.recipe import Recipe
from searcher.overlap import refuse_overlap
from searcher.questions import balanced_sample, load_questions

__all__ = [
    "balanced_sample",
    "explain",
    "load_questions",
    "load_recipe",
    "parse_recipe",
    "refuse_training_on_evaluation",
]


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


def refuse_training_on_evaluation(recipe: Recipe) -> None:
    """Raises InvalidInput that names the questions of a stage that are evaluated on, unless the recipe allows it."""
    if recipe.evaluation is None or recipe.evaluation.allow_overlap:
        return
    held_out = load_questions(Path(recipe.evaluation.questions))
    for path in dict.fromkeys(stage.questions for stage in recipe.stages):
        refuse_overlap(
            load_questions(Path(path)),
            held_out,
            what=path,
            against=f"evaluation.questions ({recipe.evaluation.questions})",
            fix="take them out, or set evaluation.allow_overlap = true",
        )


def explain(error: ValidationError) -> str:
    """One line per wrong field: where, what is wrong, what was given."""
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'recipe'}: {problem['msg']}" for problem in error.errors()
    )


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
