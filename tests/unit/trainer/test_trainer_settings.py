from pathlib import Path

import pytest

from services.trainer.settings import TrainerSettings


def test_settings_reach_the_training_process_unchanged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = TrainerSettings(runs_dir=tmp_path, weights_dir=tmp_path / "w", public_url="http://me", evaluator_url=None)
    for name, value in mine.environment().items():
        monkeypatch.setenv(name, value)

    assert TrainerSettings() == mine


def test_blank_variables_mean_not_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRAINER_WEIGHTS_DIR", "TRAINER_PUBLIC_URL", "TRAINER_EVALUATOR_URL"):
        monkeypatch.setenv(name, "")

    settings = TrainerSettings()

    assert (settings.weights_dir, settings.public_url, settings.evaluator_url) == (None, None, None)


def test_every_setting_is_in_the_readme() -> None:
    readme = (Path(__file__).parents[3] / "services" / "trainer" / "README.md").read_text()

    missing = [
        name for name in TrainerSettings.model_fields if name != "shared" and f"TRAINER_{name.upper()}" not in readme
    ]
    assert missing == []
