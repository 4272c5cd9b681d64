"""Step number -> learning rate. A function of the step alone, so a resumed run needs no scheduler state."""

import math

from searcher.contracts.recipe import Recipe

FLOOR = 0.1
"""Decaying schedules end at this share of the learning rate."""


def learning_rate(step: int, recipe: Recipe) -> float:
    """For the step that starts with `step` steps behind it. Warm-up never begins at 0: the first step moves too."""
    trainer = recipe.trainer
    if step < trainer.warmup_steps:
        return trainer.learning_rate * (step + 1) / trainer.warmup_steps
    progress = min(1.0, (step - trainer.warmup_steps) / max(1, recipe.max_steps - trainer.warmup_steps))
    match trainer.lr_schedule:
        case "constant":
            share = 1.0
        case "linear":
            share = 1.0 - (1.0 - FLOOR) * progress
        case "cosine":
            share = FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return trainer.learning_rate * share
