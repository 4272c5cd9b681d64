import pytest
from trainer_toys import make_recipe

from services.trainer.schedule import learning_rate


def rates(tmp_path, *, steps: int, **trainer) -> list[float]:
    stages = [{"name": "only", "questions": "q.jsonl", "rules": "searcher", "max_steps": steps}]
    recipe = make_recipe(tmp_path, stages=stages, trainer={"learning_rate": 1.0, **trainer}, model={"path": "unused"})
    return [learning_rate(step, recipe) for step in range(steps + 1)]


def test_constant_is_constant(tmp_path) -> None:
    assert rates(tmp_path, steps=3) == [1.0] * 4


def test_the_first_step_of_a_warm_up_moves_too(tmp_path) -> None:
    assert rates(tmp_path, steps=5, warmup_steps=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_linear_ends_at_a_tenth(tmp_path) -> None:
    assert rates(tmp_path, steps=2, lr_schedule="linear") == pytest.approx([1.0, 0.55, 0.1])


def test_cosine_is_half_way_in_the_middle(tmp_path) -> None:
    assert rates(tmp_path, steps=2, lr_schedule="cosine") == pytest.approx([1.0, 0.55, 0.1])
