from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from trainer_toys import make_recipe

from searcher.contracts.run import RunState
from services.trainer.metrics import GAUGES, RunCollector
from services.trainer.rundir import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "model").mkdir()
    directory = RunDirectory(tmp_path / "runs" / "toy")
    directory.create(make_recipe(tmp_path))
    return directory


def scrape(run: RunDirectory | None) -> str:
    registry = CollectorRegistry()
    registry.register(RunCollector(lambda: run))
    return generate_latest(registry).decode()


def test_before_the_first_run_there_is_nothing_to_say() -> None:
    assert scrape(None) == ""


def test_the_newest_line_of_a_run_is_what_prometheus_sees(run: RunDirectory) -> None:
    run.write_metrics({"step": 1, "stage": "only", "reward": 0.1, "tokens_per_second": 10})
    run.write_metrics({"step": 2, "stage": "only", "reward": 0.25, "tokens_per_second": 5_000})

    text = scrape(run)

    assert 'searcher_trainer_run_info{run="toy"} 1.0' in text
    assert "searcher_trainer_step_count 2.0" in text
    assert "searcher_trainer_reward_mean 0.25" in text
    assert "searcher_trainer_tokens_per_second 5000.0" in text
    assert "searcher_trainer_last_step_timestamp_seconds" in text


def test_a_run_that_was_given_up_shows(run: RunDirectory) -> None:
    run.record = run.record.model_copy(update={"state": RunState.FAILED, "restarts": 6})

    text = scrape(run)

    assert "searcher_trainer_running 0.0" in text
    assert "searcher_trainer_failed 1.0" in text
    assert "searcher_trainer_restarts 6.0" in text


def test_every_gauge_says_what_it_means() -> None:
    assert all(name.startswith("searcher_trainer_") and len(text) > 10 for name, (_, text) in GAUGES.items())
