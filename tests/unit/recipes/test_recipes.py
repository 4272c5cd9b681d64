"""Recipes and question files: what is read, and how wrong input is refused."""

import gzip
import json
from pathlib import Path

import pytest

from searcher.contracts.errors import InvalidInput
from searcher.contracts.question import Question
from searcher.contracts.recipe import Recipe
from searcher.recipes import balanced_sample, load_questions, load_recipe

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


def test_questions_are_read_plain_and_gzipped(tmp_path: Path) -> None:
    rows = [{"idx": 1, "question": "Who?", "answer": "Me", "hops": 2}, {"id": "b", "question": "Q?", "answers": ["x"]}]
    text = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "q.jsonl").write_text(text)
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(text.encode()))

    plain = load_questions(tmp_path / "q.jsonl", corpus="wiki")

    assert [q.id for q in plain] == ["1", "b"]
    assert plain[0].hops == 2
    assert {q.corpus for q in plain} == {"wiki"}
    assert load_questions(tmp_path / "q.jsonl.gz", corpus="wiki") == plain
    assert load_questions(tmp_path / "q.jsonl", corpus="wiki", limit=1) == plain[:1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"id": 1, "question": "Q?", "answer": "a"}\n{"id": 2}\n', ":2: question"),
        (b'{"id": 1, "question": "Q?", "answer": "a"}\nnot json\n', ":2: not a JSON object"),
        (b'{"id": 1, "question": "Q?", "answer": "a"}\n{"id": 1, "question": "R?", "answer": "b"}\n', "occurs twice"),
        (b"\xff\xfe\n", "not UTF-8"),
        (b"\n", "holds no questions"),
        (b"[1]\n", ":1: not a JSON object"),
    ],
)
def test_a_wrong_question_file_names_the_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "wrong.jsonl"
    path.write_bytes(content)

    with pytest.raises(InvalidInput, match=says):
        load_questions(path)


def test_a_sample_is_balanced_over_hop_counts_and_repeatable() -> None:
    questions = [Question(id=str(i), question="?", answers=("a",), hops=1 if i < 90 else 2) for i in range(100)]

    sample = balanced_sample(questions, 16, seed=3)

    assert [sum(q.hops == hops for q in sample) for hops in (1, 2)] == [8, 8]
    assert sample == balanced_sample(questions, 16, seed=3)
    assert len(balanced_sample(questions, 1_000, seed=3)) == 100
