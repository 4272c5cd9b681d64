"""One training process: `python -m services.trainer.train RUN_DIR`, alone or under torchrun.

RUN_DIR holds recipe.json. Ends by itself (ending.json says how) or crashes; started again, it continues from the
newest checkpoint.
"""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

from searcher.contracts.errors import InvalidInput
from searcher.servicekit.logging import configure_logging
from services.trainer.parentage import die_with_parent
from services.trainer.rundir import Ending, Outcome, RunDirectory
from services.trainer.settings import TrainerSettings


def main() -> int:
    die_with_parent()
    settings = TrainerSettings()
    configure_logging(settings.shared)
    directory = RunDirectory(Path(sys.argv[1]).absolute())
    is_first = int(os.environ.get("RANK", "0")) == 0
    with directory.locked() if is_first else contextlib.nullcontext():
        try:
            outcome = asyncio.run(train_here(directory, settings))
        except InvalidInput as error:
            ending = Ending(outcome=Outcome.REFUSED, error=error.detail)
        else:
            ending = Ending(outcome=outcome)
        if is_first:
            directory.event("ended", outcome=ending.outcome.value, error=ending.error)
            directory.ending = ending
    return 0 if ending.error is None else 2


async def train_here(directory: RunDirectory, settings: TrainerSettings) -> Outcome:
    from searcher.clients.evaluator import EvaluatorClient
    from searcher.clients.retriever import RetrieverClient
    from searcher.servicekit.streams import connect
    from services.trainer.engine import TrainingEngine
    from services.trainer.loop import train
    from services.trainer.office import Office
    from services.trainer.processes import Processes
    from services.trainer.run import Run

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)  # before this, there is nothing to save
    recipe = directory.recipe
    processes = Processes(device=recipe.trainer.device)
    redis = connect(settings.shared.redis_url)
    office = None
    async with contextlib.AsyncExitStack() as clients:
        clients.push_async_callback(redis.aclose)
        key = settings.shared.api_key
        if processes.is_first:
            evaluator = retriever = None
            if settings.evaluator_url:
                evaluator = await clients.enter_async_context(EvaluatorClient(settings.evaluator_url, api_key=key))
            if settings.retriever_url:
                client = RetrieverClient(settings.retriever_url, api_key=key, timeout_seconds=5.0, attempts=2)
                retriever = await clients.enter_async_context(client)
            office = Office(
                directory, recipe, settings, redis=redis, evaluator=evaluator, retriever=retriever, stop=stop
            )
        run = Run(directory, recipe, TrainingEngine(recipe, processes), processes, office)
        run.resume()
        if office:
            directory.event("training", from_step=run.step, processes=processes.part.count)
            await office.indexes.note()
        await train(run)
    processes.close()
    return run.outcome


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is closed; unloading PyTorch and DeepSpeed piece by piece takes seconds
