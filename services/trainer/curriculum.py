"""Recipe + position -> which question to ask next: a function of the seed and of what was learned so far.

    stage -> epoch (a seeded shuffle of the stage's questions) -> batches of `questions_per_step` slots

A question that cannot be asked (its prompt does not fit, a service refuses it) gives its slot to the next question.
Redis and the model are elsewhere; this can be saved and restored as JSON.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from searcher.contracts.errors import InvalidInput
from searcher.contracts.experience import DropReason, ScoredGroup
from searcher.contracts.question import Question, QuestionTask
from searcher.contracts.recipe import Recipe, Stage
from searcher.contracts.weights import WeightVersion

MAX_ATTEMPTS = 50
"""So many questions in a row refused for one slot: it is not the questions."""


@dataclass(frozen=True)
class Slot:
    """One place of one batch, and the question that has it."""

    batch: int
    number: int
    attempt: int
    stage: int
    question: int
    """Index into the stage's questions."""


@dataclass
class Progress:
    """Everything that moves; JSON-able."""

    stage: int = 0
    planned_in_stage: int = 0
    cursors: list[int] = field(default_factory=list)
    """Questions handed out so far, per stage, over all its epochs."""
    streak: int = 0
    """Consecutive trained steps of the current stage that met its `until`."""
    next_batch: int = 0
    outstanding: dict[int, list[Slot]] = field(default_factory=dict)
    """Planned and not yet trained, by batch."""


class Curriculum:
    def __init__(self, recipe: Recipe, questions: Mapping[str, Sequence[Question]], run_id: str) -> None:
        self.recipe, self.questions, self.run_id = recipe, questions, run_id
        self.progress = Progress(cursors=[0] * len(recipe.stages))

    def plan(self, up_to_batch: int) -> None:
        """Fill all batches up to this one; fewer if the last stage ends before."""
        while self.progress.next_batch <= up_to_batch and self._enter_next_stage_if_done():
            progress = self.progress
            slots = [
                self._slot(progress.next_batch, number, 0, stage=progress.stage)
                for number in range(self.recipe.questions_per_step)
            ]
            progress.outstanding[progress.next_batch] = slots
            progress.planned_in_stage += 1
            progress.next_batch += 1

    def has(self, batch: int) -> bool:
        return batch in self.progress.outstanding

    def slots(self, batch: int) -> list[Slot]:
        return self.progress.outstanding[batch]

    def replace(self, slot: Slot, dropped: ScoredGroup) -> Slot:
        """The next question of the slot's stage takes its place."""
        if slot.attempt + 1 >= MAX_ATTEMPTS:
            reason = dropped.dropped or DropReason.REFUSED
            raise InvalidInput(
                f"stage {self._stage(slot).name}: {MAX_ATTEMPTS} questions in a row were not asked, the last one as "
                f"{reason.value}: {dropped.detail or 'no detail given'}"
            )
        # A batch planned in an earlier stage keeps to that stage, even if planning has moved on.
        successor = self._slot(slot.batch, slot.number, slot.attempt + 1, stage=slot.stage)
        self.progress.outstanding[slot.batch][slot.number] = successor
        return successor

    def trained(self, batch: int, *, search_rate: float, format_rate: float) -> None:
        """This batch is learned from; its rates count towards the end of its stage."""
        stage_index = self.slots(batch)[0].stage
        del self.progress.outstanding[batch]
        until = self.recipe.stages[stage_index].until
        if until is None or stage_index != self.progress.stage:
            return
        held = search_rate >= until.search_rate and format_rate >= until.format_rate
        self.progress.streak = self.progress.streak + 1 if held else 0

    def stage_name(self, batch: int) -> str:
        return self._stage(self.slots(batch)[0]).name

    def task(self, slot: Slot, min_weights: WeightVersion) -> QuestionTask:
        stage, plan = self._stage(slot), self.recipe.rollout
        if plan.seed is not None:  # the same question in a later epoch must not repeat its samples
            plan = plan.model_copy(update={"seed": plan.seed + slot.batch})
        return QuestionTask(
            group_id=self.group_id(slot),
            run_id=self.run_id,
            stage=stage.name,
            question=self.questions[stage.name][slot.question],
            num_samples=self.recipe.samples_per_question,
            plan=plan,
            rules=stage.rules,
            min_weights=min_weights,
        )

    def group_id(self, slot: Slot) -> str:
        return f"{self.run_id}-s{slot.batch:06d}-q{slot.number:03d}-a{slot.attempt}"

    def state(self) -> dict[str, Any]:
        progress = self.progress
        return {
            "stage": progress.stage,
            "planned_in_stage": progress.planned_in_stage,
            "cursors": list(progress.cursors),
            "streak": progress.streak,
            "next_batch": progress.next_batch,
            "outstanding": [
                [slot.batch, slot.number, slot.attempt, slot.stage, slot.question]
                for slots in progress.outstanding.values()
                for slot in slots
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        outstanding: dict[int, list[Slot]] = {}
        for row in state["outstanding"]:
            outstanding.setdefault(row[0], []).append(Slot(*row))
        self.progress = Progress(**{**state, "outstanding": outstanding})

    def _enter_next_stage_if_done(self) -> bool:
        """False once there is no stage left."""
        progress = self.progress
        while progress.stage < len(self.recipe.stages):
            stage = self.recipe.stages[progress.stage]
            held = stage.until is not None and progress.streak >= stage.until.patience
            if progress.planned_in_stage < stage.max_steps and not held:
                return True
            progress.stage += 1
            progress.planned_in_stage = progress.streak = 0
        return False

    def _slot(self, batch: int, number: int, attempt: int, *, stage: int) -> Slot:
        cursors = self.progress.cursors
        epoch, place = divmod(cursors[stage], len(self.questions[self.recipe.stages[stage].name]))
        cursors[stage] += 1
        return Slot(batch, number, attempt, stage, self._order(stage, epoch)[place])

    def _order(self, stage: int, epoch: int) -> tuple[int, ...]:
        name = self.recipe.stages[stage].name
        return _shuffled(len(self.questions[name]), f"{self.recipe.seed}/{name}/{epoch}")

    def _stage(self, slot: Slot) -> Stage:
        return self.recipe.stages[slot.stage]


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: str) -> tuple[int, ...]:
    return tuple(random.Random(seed).sample(range(count), count))


def group_batch(group_id: str) -> int:
    """The batch that a group was asked for."""
    *_, batch, _, _ = group_id.split("-")
    return int(batch.removeprefix("s"))
