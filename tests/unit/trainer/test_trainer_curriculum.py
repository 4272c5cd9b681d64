import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainer_toys import question

from searcher.contracts.errors import InvalidInput
from searcher.contracts.experience import DropReason, ScoredGroup
from searcher.contracts.recipe import Recipe
from searcher.contracts.weights import WeightVersion
from services.trainer.curriculum import MAX_ATTEMPTS, Curriculum, Slot, group_batch

WEIGHTS = WeightVersion(run_id="my-run", step=3, location="file:///w", sha256="a" * 64, num_bytes=1)
DROPPED = ScoredGroup(
    group_id="g",
    run_id="my-run",
    stage="one",
    trajectories=(),
    dropped=DropReason.PROMPT_TOO_LONG,
    detail="9999 tokens",
)


def recipe(*stages: dict, questions_per_step: int = 2, **changes) -> Recipe:
    fields = [{"questions": "-", "rules": "searcher", **stage} for stage in stages]
    return Recipe.model_validate(
        {
            "name": "toy",
            "model": {"path": "-"},
            "questions_per_step": questions_per_step,
            "samples_per_question": 2,
            "stages": fields,
            **changes,
        }
    )


def curriculum(toy: Recipe, *, num_questions: int = 5) -> Curriculum:
    questions = {stage.name: [question(n) for n in range(num_questions)] for stage in toy.stages}
    return Curriculum(toy, questions, "my-run")


def order(planner: Curriculum, batch: int) -> list[int]:
    return [slot.question for slot in planner.slots(batch)]


ONE_STAGE = recipe({"name": "one", "max_steps": 10})


def test_no_question_repeats_within_an_epoch() -> None:
    planner = curriculum(ONE_STAGE)

    planner.plan(4)  # ten slots: two epochs of five questions

    asked = [number for batch in range(5) for number in order(planner, batch)]
    assert sorted(asked[:5]) == sorted(asked[5:]) == [0, 1, 2, 3, 4]
    assert asked[:5] != asked[5:]


def test_the_same_seed_asks_the_same_questions() -> None:
    one, other, third = (
        curriculum(ONE_STAGE),
        curriculum(ONE_STAGE),
        curriculum(ONE_STAGE.model_copy(update={"seed": 1})),
    )
    for planner in (one, other, third):
        planner.plan(4)

    assert [order(one, batch) for batch in range(5)] == [order(other, batch) for batch in range(5)]
    assert [order(one, batch) for batch in range(5)] != [order(third, batch) for batch in range(5)]


def test_a_dropped_question_gives_its_slot_to_the_next_one() -> None:
    planner = curriculum(ONE_STAGE)
    planner.plan(0)
    first, second = planner.slots(0)

    replacement = planner.replace(first, DROPPED)

    assert planner.slots(0) == [replacement, second]
    assert (replacement.number, replacement.attempt) == (0, 1)
    assert replacement.question not in (first.question, second.question)


def test_a_slot_that_nobody_can_fill_fails_the_run_with_the_reason() -> None:
    planner = curriculum(ONE_STAGE)
    planner.plan(0)
    slot = planner.slots(0)[0]

    def give_up() -> None:
        last = slot
        for _ in range(MAX_ATTEMPTS):
            last = planner.replace(last, DROPPED)

    with pytest.raises(InvalidInput, match=r"stage one.*prompt_too_long: 9999 tokens"):
        give_up()


def test_stages_follow_each_other_and_then_there_is_nothing_left() -> None:
    planner = curriculum(recipe({"name": "one", "max_steps": 1}, {"name": "two", "max_steps": 2}))

    planner.plan(100)

    assert [planner.stage_name(batch) for batch in range(3)] == ["one", "two", "two"]
    assert not planner.has(3)


UNTIL = {"search_rate": 0.9, "format_rate": 0.9, "patience": 2}


@pytest.mark.parametrize(
    ("rates", "stages"),
    [
        ([(1.0, 1.0), (1.0, 1.0)], ["one", "one", "two"]),
        ([(1.0, 1.0), (0.5, 1.0), (1.0, 1.0)], ["one", "one", "one", "one"]),
        ([(1.0, 0.5), (1.0, 0.5)], ["one", "one", "one"]),
    ],
)
def test_a_stage_ends_once_both_rates_held_long_enough(rates: list[tuple[float, float]], stages: list[str]) -> None:
    planner = curriculum(recipe({"name": "one", "max_steps": 9, "until": UNTIL}, {"name": "two", "max_steps": 1}))
    planner.plan(0)
    seen = [planner.stage_name(0)]

    for batch, (search_rate, format_rate) in enumerate(rates):
        planner.trained(batch, search_rate=search_rate, format_rate=format_rate)
        planner.plan(batch + 1)
        seen.append(planner.stage_name(batch + 1))

    assert seen == stages


def test_batches_planned_ahead_keep_their_stage_when_it_ends_early() -> None:
    until = {**UNTIL, "patience": 1}
    planner = curriculum(recipe({"name": "one", "max_steps": 9, "until": until}, {"name": "two", "max_steps": 1}))
    planner.plan(2)

    planner.trained(0, search_rate=1.0, format_rate=1.0)
    planner.plan(3)

    assert [planner.stage_name(batch) for batch in (1, 2, 3)] == ["one", "one", "two"]


def test_a_replacement_in_a_stage_that_is_over_comes_from_that_stage() -> None:
    planner = curriculum(recipe({"name": "one", "max_steps": 1}, {"name": "two", "max_steps": 1}))
    planner.plan(1)
    before = order(planner, 1)

    replacement = planner.replace(planner.slots(0)[0], DROPPED)

    assert planner.task(replacement, WEIGHTS).stage == "one"
    assert order(planner, 1) == before


def test_a_task_says_who_asks_what_how_often_and_by_which_rules() -> None:
    planner = curriculum(recipe({"name": "one", "max_steps": 1, "rules": "stage1"}))
    planner.plan(0)

    task = planner.task(planner.slots(0)[1], WEIGHTS)

    assert task.group_id == "my-run-s000000-q001-a0"
    assert group_batch(task.group_id) == 0
    assert (task.run_id, task.stage, task.rules, task.num_samples) == ("my-run", "one", "stage1", 2)
    assert task.min_weights == WEIGHTS


def test_a_seeded_plan_does_not_repeat_its_samples_in_the_next_epoch() -> None:
    planner = curriculum(recipe({"name": "one", "max_steps": 9}, rollout={"seed": 100}))
    slots = [Slot(batch, 0, 0, 0, 3) for batch in (0, 7)]

    assert [planner.task(slot, WEIGHTS).plan.seed for slot in slots] == [100, 107]


@given(st.lists(st.sampled_from(["train", "train well", "drop", "ahead"]), max_size=30), st.integers(0, 30))
def test_a_restored_curriculum_goes_on_as_if_nothing_had_happened(moves: list[str], cut: int) -> None:
    toy = recipe({"name": "one", "max_steps": 6, "until": UNTIL}, {"name": "two", "max_steps": 6})
    straight = curriculum(toy)
    straight.plan(0)
    for move in moves[:cut]:
        apply(straight, move)

    resumed = curriculum(toy)
    resumed.restore(json.loads(json.dumps(straight.state())))
    for move in moves[cut:]:
        apply(straight, move)
        apply(resumed, move)

    assert resumed.state() == straight.state()


def apply(planner: Curriculum, move: str) -> None:
    open_batches = sorted(planner.progress.outstanding)
    if move == "ahead":
        planner.plan(planner.progress.next_batch)
    elif open_batches and move == "drop":
        planner.replace(planner.slots(open_batches[0])[0], DROPPED)
    elif open_batches:
        rate = 1.0 if move == "train well" else 0.0
        planner.trained(open_batches[0], search_rate=rate, format_rate=rate)
        planner.plan(open_batches[0] + 1)
