import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from searcher.contracts.weights import WeightVersion
from services.trainer.publish import Publisher, export_model


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"model.embed_tokens.weight": torch.full((2, 3), value)}


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "weights", "my-run", public_url=None, keep=2)


def on_disk(publisher: Publisher) -> list[int]:
    return sorted(int(path.name[-6:]) for path in publisher.directory.iterdir())


def publish(publisher: Publisher, step: int, value: float | None = None) -> WeightVersion:
    version = publisher.write(weights(float(step) if value is None else value), step=step)
    publisher.prune(version)
    return version


def test_a_version_is_a_verified_file_that_engines_can_open(publisher: Publisher) -> None:
    version = publish(publisher, 3)

    path = Path(version.location.removeprefix("file://"))
    assert path == (publisher.directory / version.name / "model.safetensors").resolve()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == version.sha256
    assert version.num_bytes == path.stat().st_size
    assert load_file(path)["model.embed_tokens.weight"].tolist() == [[3.0] * 3] * 2


def test_other_machines_are_given_a_download(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path, "my-run", public_url="http://trainer:8004/", keep=2)

    version = publish(publisher, 3)

    assert version.location == f"http://trainer:8004/v1/weights/{version.name}/model.safetensors"


def test_a_repeated_step_with_the_same_bytes_is_the_same_version(publisher: Publisher) -> None:
    assert publish(publisher, 3) == publish(publisher, 3)


def test_a_repeated_step_with_other_bytes_is_another_version_and_replaces_it(publisher: Publisher) -> None:
    first, second = publish(publisher, 3, value=1.0), publish(publisher, 3, value=2.0)

    assert first.name != second.name
    assert [path.name for path in publisher.directory.iterdir()] == [second.name]


def test_only_the_newest_versions_stay(publisher: Publisher) -> None:
    for step in range(5):
        publish(publisher, step)

    assert on_disk(publisher) == [3, 4]


def test_versions_published_before_a_crash_are_void_after_it(publisher: Publisher) -> None:
    for step in (6, 7):
        publish(publisher, step)

    publish(publisher, 5)

    assert on_disk(publisher) == [5]


def test_other_runs_in_the_same_folder_are_left_alone(publisher: Publisher) -> None:
    neighbour = Publisher(publisher.directory, "my-run-2", public_url=None, keep=1)
    theirs = publish(neighbour, 9)

    for step in range(4):
        publish(publisher, step)

    assert (publisher.directory / theirs.name).exists()


def test_an_export_is_the_base_model_with_other_weights(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        (base / name).write_text(name)
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        (base / name).write_text("old weights")

    path = export_model(weights(1.0), base, tmp_path / "export" / "step-000004")

    names = sorted(file.name for file in path.iterdir())
    assert names == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert load_file(path / "model.safetensors")["model.embed_tokens.weight"].tolist() == [[1.0] * 3] * 2


def test_exporting_again_replaces_the_folder(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    target = tmp_path / "export" / "step-000004"
    export_model(weights(1.0), base, target)

    export_model(weights(2.0), base, target)

    assert load_file(target / "model.safetensors")["model.embed_tokens.weight"][0, 0] == 2.0
    assert [path.name for path in target.parent.iterdir()] == ["step-000004"]
