"""The newest line of a run's metrics.jsonl -> Prometheus. Read at scrape time, so it survives crashes of training."""

from collections.abc import Callable, Iterable

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from searcher.contracts.run import RunState
from services.trainer.rundir import RunDirectory

GAUGES: dict[str, tuple[str, str]] = {
    "searcher_trainer_step_count": ("step", "Optimiser steps taken. Stands still: look at the last-step time."),
    "searcher_trainer_reward_mean": ("reward", "Mean reward of the newest batch. Falls and stays down: a collapse."),
    "searcher_trainer_reward_zero_std_ratio": (
        "frac_reward_zero_std",
        "Groups whose samples all got the same reward and teach nothing. Near 1: questions too easy or too hard.",
    ),
    "searcher_trainer_search_ratio": (
        "search_rate",
        "Trajectories that searched. Falls to 0: searching was unlearned.",
    ),
    "searcher_trainer_format_ratio": ("format_rate", "Trajectories in the right format. Falls: a collapse begins."),
    "searcher_trainer_f1_ratio": ("f1", "Mean answer F1 of the newest batch, sampled (not greedy)."),
    "searcher_trainer_entropy_nats": ("entropy", "Policy entropy per token. Towards 0: it no longer explores."),
    "searcher_trainer_kl_nats": ("kl", "KL to the reference model; 0 without a KL coefficient."),
    "searcher_trainer_clip_ratio": ("clip_ratio/region_mean", "Tokens outside the trust region. Above 0.3: too stale."),
    "searcher_trainer_grad_norm": ("grad_norm", "Before clipping. Many times its usual size: a collapse begins."),
    "searcher_trainer_loss": ("loss", "Near 0 when healthy; its size says nothing about progress."),
    "searcher_trainer_learning_rate": ("learning_rate", "Of the newest step."),
    "searcher_trainer_logprob_difference_nats": (
        "sampling/sampling_logp_difference/mean",
        "|log p trainer - log p engine|. Above 0.05: engine and trainer do not hold the same weights or precision.",
    ),
    "searcher_trainer_weight_age_steps": ("staleness/mean", "Optimiser steps between sampling and learning."),
    "searcher_trainer_step_seconds": ("step_time", "Collect, train and publish. See the phases for which one grew."),
    "searcher_trainer_collect_seconds": ("time/collect", "Waiting for rollouts. Most of the step: add engines."),
    "searcher_trainer_train_seconds": ("time/train", "Forward, backward, update. Most of the step: add trainers."),
    "searcher_trainer_publish_seconds": ("time/publish", "Writing weights. Large: put TRAINER_WEIGHTS_DIR in memory."),
    "searcher_trainer_tokens_per_second": ("tokens_per_second", "All tokens of a step over its time."),
    "searcher_trainer_trajectories_per_second": ("trajectories_per_second", "Trajectories over the step's time."),
    "searcher_trainer_eval_f1_ratio": ("eval/f1", "Held-out greedy F1, on steps that were evaluated."),
}


class RunCollector(Collector):
    """Of the run that is being trained, else of the one trained last; nothing before the first."""

    def __init__(self, newest_run: Callable[[], RunDirectory | None]) -> None:
        self.newest_run = newest_run

    def register(self) -> None:
        REGISTRY.register(self)

    def unregister(self) -> None:
        REGISTRY.unregister(self)

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        run = self.newest_run()
        if run is None:
            return
        record, line = run.record, run.last_metrics()
        yield InfoMetricFamily("searcher_trainer_run", "Which run the other metrics are of.", {"run": run.run_id})
        yield gauge("searcher_trainer_running", "1 while a run is wanted to train.", record.state is RunState.RUNNING)
        yield gauge(
            "searcher_trainer_failed", "1 if it was given up: GET /v1/runs says why.", record.state is RunState.FAILED
        )
        yield gauge(
            "searcher_trainer_restarts",
            "Crashes of its training process so far. Rising: read the log.",
            record.restarts,
        )
        if run.metrics_file.exists():
            yield gauge(
                "searcher_trainer_last_step_timestamp_seconds",
                "When the newest step was recorded. Long ago while running: training is stalled.",
                run.metrics_file.stat().st_mtime,
            )
        for name, (key, text) in GAUGES.items():
            if key in line:
                yield gauge(name, text, line[key])


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))
