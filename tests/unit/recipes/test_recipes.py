"""Recipes: what is read, and how wrong input is refused."""

from pathlib import Path

import pytest

from searcher.contracts.errors import InvalidInput
from searcher.contracts.recipe import Recipe
from searcher.recipes import load_recipe, refuse_training_on_evaluation

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.toml"))

MINIMAL = """
name = "mini"
questions_per_step = 4
samples_per_question = 2
[model]
path = "model"
[[stages]]
name = "one"
questions = "questions.jsonl"
rules = "searcher"
max_steps = 3
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert load_recipe(path).name


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "mini.toml", MINIMAL))

    assert recipe.model.path == str(tmp_path / "model")
    assert recipe.stages[0].questions == str(tmp_path / "questions.jsonl")
    assert (recipe.max_steps, recipe.trajectories_per_step) == (3, 8)


def test_a_recipe_survives_json(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "mini.toml", MINIMAL))

    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("questions_per_step = 0\n", "questions_per_step"),
        ("samples_per_question = 1\n", "samples_per_question"),
        ("learning_rate = 1\n", "learning_rate"),
        ("max_staleness = 1\n[trainer]\nclip_high = -1\n", "clip_high"),
        ("[rollout]\ntemperature = 0\n", "temperature"),
        ("[rollout]\ntop_p = 0.9\n", "top_p"),
        ("[trainer]\nupdates_per_step = 3\n", "updates_per_step"),
    ],
)
def test_a_wrong_recipe_names_what_is_wrong(tmp_path: Path, change: str, named: str) -> None:
    replaced = "\n".join(line for line in MINIMAL.splitlines() if not line.startswith(change.partition(" ")[0] + " "))
    text = replaced.replace("[model]", f"{change}[model]")

    with pytest.raises(InvalidInput, match=named):
        load_recipe(write(tmp_path / "wrong.toml", text))


def test_an_unclipped_loss_on_stale_samples_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "mini.toml", MINIMAL)).model_dump(mode="json")

    with pytest.raises(ValueError, match="unclipped"):
        Recipe.model_validate({**recipe, "max_staleness": 2, "trainer": {**recipe["trainer"], "clip_low": None}})


def test_a_missing_recipe_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such recipe"):
        load_recipe(tmp_path / "none.toml")


def test_training_on_evaluation_questions_is_refused_unless_the_recipe_allows_it(tmp_path: Path) -> None:
    write(tmp_path / "questions.jsonl", '{"question": "Who?", "answer": "a"}\n{"question": "What?", "answer": "b"}\n')
    write(tmp_path / "eval.jsonl", '{"question": "what", "answer": "b"}\n')
    evaluated = f'{MINIMAL}[evaluation]\nquestions = "eval.jsonl"\n'

    refuse_training_on_evaluation(load_recipe(write(tmp_path / "none.toml", MINIMAL)))
    refuse_training_on_evaluation(load_recipe(write(tmp_path / "allowed.toml", evaluated + "allow_overlap = true\n")))
    with pytest.raises(InvalidInput, match=r"jsonl shares 1 of its questions with evaluation.*2 = 1 'What\?'"):
        refuse_training_on_evaluation(load_recipe(write(tmp_path / "refused.toml", evaluated)))
