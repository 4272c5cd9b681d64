import json
import os
from pathlib import Path

import pytest
from trainer_toys import make_recipe

from searcher.contracts.run import RunState
from services.trainer.rundir import Ending, Outcome, RunDirectory, read_lines


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "model").mkdir()
    directory = RunDirectory(tmp_path / "runs" / "toy")
    directory.create(make_recipe(tmp_path))
    return directory


def test_a_new_run_is_wanted_and_knows_its_recipe(run: RunDirectory) -> None:
    assert run.exists
    assert run.record.state is RunState.RUNNING
    assert run.recipe.name == "toy"
    assert run.last_metrics() == {}
    assert run.ending is None


def test_an_ending_is_remembered_until_the_next_start(run: RunDirectory) -> None:
    run.ending = Ending(outcome=Outcome.REFUSED, error="no such model")
    assert run.ending == Ending(outcome=Outcome.REFUSED, error="no such model")

    run.ending = None

    assert run.ending is None


def test_metrics_are_read_from_a_step_on(run: RunDirectory) -> None:
    for step in range(4):
        run.write_metrics({"step": step})

    assert run.metrics(after_step=1) == [{"step": 2}, {"step": 3}]
    assert run.last_metrics() == {"step": 3}


def test_a_half_written_line_is_not_there_yet(run: RunDirectory) -> None:
    run.write_metrics({"step": 1})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 2, "rew')

    assert run.metrics() == [{"step": 1}]
    assert run.last_metrics() == {"step": 1}


def test_the_last_line_of_a_long_file_is_found_without_reading_all_of_it(run: RunDirectory) -> None:
    for step in range(300):
        run.write_metrics({"step": step, "padding": "x" * 1_000})

    assert run.last_metrics()["step"] == 299


def test_what_is_about_to_be_repeated_is_forgotten(run: RunDirectory) -> None:
    for step in range(1, 6):
        run.write_metrics({"step": step})

    run.forget_after(3)

    assert [line["step"] for line in run.metrics()] == [1, 2, 3]


def test_a_half_written_line_does_not_survive_a_resume(run: RunDirectory) -> None:
    run.write_metrics({"step": 1})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 2')

    run.forget_after(2)
    run.write_metrics({"step": 2})

    assert [line["step"] for line in run.metrics()] == [1, 2]


def test_events_are_kept_in_order_with_their_time(run: RunDirectory) -> None:
    run.event("created", recipe="toy")
    run.event("checkpoint_saved", path="x")

    events = read_lines(run.events_file)
    assert [event["event"] for event in events] == ["created", "checkpoint_saved"]
    assert all("time" in event for event in events)
    assert json.loads(run.events_file.read_text().splitlines()[0])["recipe"] == "toy"


def test_the_lock_tells_whom_to_signal_and_forgets_when_released(run: RunDirectory) -> None:
    with run.locked():
        assert run.process_id() == os.getpid()

    assert run.process_id() is None
