"""Training, one step at a time: collect -> advantages -> pack -> step -> publish -> evaluate -> checkpoint.

Every process of a run executes this loop in the same order, on its own share of the rows; what only the first one may
do (Redis, files, evaluations) is behind `run`. A step is a function of its batch and of the weights before it, and a
batch has exactly the groups that were asked for it. So a run that is killed anywhere and resumed from its newest
checkpoint takes the same steps again.

    weights of step s  --publish-->  engines        questions of batches <= s + max_staleness  --ask-->  rollout
    batch s            <--collect--  experience     (max_staleness 0: nobody samples while we learn, as in the paper)
"""

import torch

from services.trainer.advantage import group_advantages
from services.trainer.batch import pack
from services.trainer.figures import rewards_of
from services.trainer.run import Run
from services.trainer.schedule import learning_rate


async def train(run: Run) -> None:
    """Until the curriculum ends or somebody asks to stop; `run.outcome` says which."""
    recipe, engine, clock = run.recipe, run.engine, run.clock
    await run.begin(engine.weights())

    while (groups := await run.collect()) is not None:
        with clock.measure("train"):
            advantages_GS = group_advantages(torch.tensor(rewards_of(groups), dtype=torch.float64), recipe.trainer)
            batch = engine.prepare(pack(groups, advantages_GS, recipe.trainer, part=run.processes.part))
            report = engine.step(batch, learning_rate=learning_rate(run.step, recipe))
        run.learned(groups)

        with clock.measure("publish"):
            await run.publish(engine.weights())
        await run.evaluate_if_due()
        run.record(groups, report)
        await run.checkpoint_if_due()

    await run.finish()
