import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from services.trainer.checkpoint import CheckpointStore, load_randomness, save_randomness, verified


def write(store: CheckpointStore, step: int, *, weights: bytes = b"weights") -> Path:
    store.begin(step)
    inner = store.partial(step) / "state"
    inner.mkdir()
    (inner / "model.pt").write_bytes(weights)
    return store.commit(step, {"position": f"{step}-0"})


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def found_steps(store: CheckpointStore) -> tuple[int | None, list[str]]:
    damaged: list[str] = []
    found = store.newest(lambda path, why: damaged.append(f"{path.name}: {why}"))
    return (found.step if found else None), damaged


def test_the_newest_checkpoint_is_found_with_its_state(store: CheckpointStore) -> None:
    write(store, 10)
    write(store, 20)

    found = store.newest(lambda path, why: None)

    assert found is not None
    assert (found.step, found.state) == (20, {"position": "20-0"})


def test_only_the_newest_are_kept(store: CheckpointStore) -> None:
    for step in (10, 20, 30):
        write(store, step)

    assert [row.step for row in store.rows()] == [20, 30]
    assert store.oldest_state() == {"position": "20-0"}


def test_a_checkpoint_cut_off_in_the_middle_does_not_exist(store: CheckpointStore) -> None:
    write(store, 10)
    store.begin(20)
    (store.partial(20) / "half.pt").write_bytes(b"hal")

    assert found_steps(store) == (10, [])


def test_a_flipped_byte_disqualifies_a_checkpoint_and_says_where(store: CheckpointStore) -> None:
    write(store, 10)
    newest = write(store, 20)
    (newest / "state" / "model.pt").write_bytes(b"weightz")

    assert found_steps(store) == (10, ["step-000020: state/model.pt does not match its sha256"])


@pytest.mark.parametrize("damage", ["missing file", "empty manifest", "half a manifest", "no manifest"])
def test_other_damage_is_skipped_too(store: CheckpointStore, damage: str) -> None:
    write(store, 10)
    newest = write(store, 20)
    match damage:
        case "missing file":
            (newest / "state" / "model.pt").unlink()
        case "empty manifest":
            (newest / "manifest.json").write_text("{}")
        case "half a manifest":
            (newest / "manifest.json").write_text((newest / "manifest.json").read_text()[:30])
        case "no manifest":
            (newest / "manifest.json").unlink()

    step, damaged = found_steps(store)

    assert step == 10
    assert len(damaged) == 1


def test_without_a_checkpoint_a_run_starts_at_the_beginning(store: CheckpointStore) -> None:
    assert found_steps(store) == (None, [])
    assert store.rows() == []


def test_a_checkpoint_replaces_later_ones_that_were_passed_over(store: CheckpointStore) -> None:
    write(store, 10)
    write(store, 20)

    write(store, 15)

    assert [row.step for row in store.rows()] == [10, 15]


def test_left_overs_of_a_crash_are_cleared_away(store: CheckpointStore) -> None:
    store.begin(10)

    write(store, 20)

    assert [path.name for path in store.directory.iterdir()] == ["step-000020"]


def test_every_file_is_in_the_manifest(store: CheckpointStore) -> None:
    path = write(store, 10)

    assert sorted(json.loads((path / "manifest.json").read_text())["files"]) == ["state.json", "state/model.pt"]
    assert verified(path).step == 10


def test_random_generators_continue_where_they_were(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    save_randomness(tmp_path / "randomness-0.pt")
    expected = draw()
    draw()

    load_randomness(tmp_path / "randomness-0.pt")

    assert draw() == expected
