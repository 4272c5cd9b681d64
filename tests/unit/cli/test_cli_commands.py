"""What the `searcher` command prints, refuses, and does not import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from searcher.cli.evaluate import metrics_table
from searcher.cli.main import app, main
from searcher.contracts.question import RolloutPlan
from searcher.contracts.report import POLICY, Metrics, Report, SystemReport

HEAVY = ("torch", "transformers", "vllm", "deepspeed", "faiss", "numpy", "httpx", "pydantic", "fastapi", "redis")


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "questions.jsonl").write_text(
        "".join(json.dumps({"id": str(i), "question": f"Who is {i}?", "answer": "x"}) + "\n" for i in range(10))
    )
    path = tmp_path / "toy.toml"
    path.write_text(
        """
        name = "toy"
        questions_per_step = 4
        samples_per_question = 8
        model = { path = "model" }
        [[stages]]
        name = "one"
        questions = "questions.jsonl"
        rules = "searcher"
        max_steps = 5
        [trainer]
        updates_per_step = 2
        """
    )
    return path


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """The command as a terminal runs it: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["searcher", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    code = ended.value.code
    return (code if isinstance(code, int) else 0), out, err


def test_help_answers_without_importing_anything_heavy() -> None:
    code = f"import sys, searcher.cli.main; print([name for name in {HEAVY} if name in sys.modules])"

    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert outcome.stdout.strip() == "[]"


def test_every_command_has_help() -> None:
    for command in (
        "up",
        "down",
        "status",
        "logs",
        "train",
        "eval",
        "ask",
        "doctor",
        "index build",
        "data check",
        "data overlap",
        "data select",
    ):
        outcome = CliRunner().invoke(app, [*command.split(), "--help"])

        assert outcome.exit_code == 0, command
        assert "Usage" in outcome.output


def test_a_dry_run_prints_every_number_and_what_follows_from_them(recipe: Path) -> None:
    outcome = CliRunner().invoke(app, ["train", str(recipe), "--dry-run", "--set", "trainer.learning_rate=1e-5"])

    lines = [" ".join(line.split()) for line in outcome.output.splitlines()]
    assert outcome.exit_code == 0
    assert "trainer.learning_rate 1e-05" in lines
    assert "samples_per_question 8" in lines
    assert "trajectories per step 4 x 8 = 32" in lines
    assert "trajectories at most 160" in lines
    assert "optimiser updates at most 10" in lines
    assert "stage one at most 5 steps, 10 questions, 2.00 epochs" in lines


def test_a_dry_run_measures_the_model_where_it_is_there(recipe: Path) -> None:
    model = recipe.parent / "model"
    model.mkdir()
    header = json.dumps({"w": {"dtype": "BF16", "shape": [1024, 1024], "data_offsets": [0, 0]}}).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)

    outcome = CliRunner().invoke(app, ["train", str(recipe), "--dry-run"])

    assert "1,048,576" in outcome.output


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("trainer.learning_rate", "write it as KEY=VALUE"),
        ("trainer.learning_rat=1", "trainer.learning_rat"),
        ("stages.3.max_steps=1", "positions 0 to 0"),
        ("name.first=1", "name is a single value"),
        ("rollout.temperature=0.0", "must be above 0"),
    ],
)
def test_a_wrong_override_is_one_line_that_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, recipe: Path, override: str, complaint: str
) -> None:
    code, _, err = run(capsys, monkeypatch, "train", str(recipe), "--dry-run", "--set", override)

    assert code == 1
    assert err.startswith("error: ")
    assert complaint in err
    assert err.count("\n") == 1


def test_training_names_the_files_that_are_missing_before_it_starts_anything(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    code, _, err = run(capsys, monkeypatch, "train", str(recipe), "--state-dir", str(recipe.parent / "state"))

    assert code == 1
    assert str(recipe.parent / "model") in err
    assert not (recipe.parent / "state").exists()


def test_a_service_that_is_not_there_is_one_line_with_the_way_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    monkeypatch.setenv("SEARCHER_ROLLOUT_URL", "http://127.0.0.1:9")

    code, _, err = run(capsys, monkeypatch, "ask", "Who wrote Middlemarch?")

    assert code == 1
    assert "rollout at http://127.0.0.1:9 did not answer" in err
    assert "searcher up" in err


def test_a_questions_file_is_counted(recipe: Path) -> None:
    outcome = CliRunner().invoke(app, ["data", "check", str(recipe.parent / "questions.jsonl")])

    lines = [" ".join(line.split()) for line in outcome.output.splitlines()]
    assert "questions 10" in lines
    assert "hops unknown: 10" in lines
    assert "asked more than once 0" in lines


def test_a_corpus_file_is_counted(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"id": "1", "title": "A", "text": "same"}, {"id": "2", "text": "same"}, {"id": "3", "text": "other"}]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))

    outcome = CliRunner().invoke(app, ["data", "check", str(corpus)])

    lines = [" ".join(line.split()) for line in outcome.output.splitlines()]
    assert "passages 3" in lines
    assert "with a title 1" in lines
    assert "same text as another 1" in lines


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"id": "1", "text": "a"}\n{"id": "1", "text": "b"}\n', ":2: the id '1' occurs twice"),
        ('{"id": "1", "text": ""}\n', ":1: `text` is missing or empty"),
        ('{"text": "a"}\nnot json\n', ":2: not JSON"),
        ('{"name": "a"}\n', "neither `question` nor `text`"),
        ("", "is empty"),
    ],
)
def test_a_wrong_line_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)

    code, _, err = run(capsys, monkeypatch, "data", "check", str(path))

    assert code == 1
    assert complaint in err


def test_the_doctor_names_what_is_missing_and_the_fix(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEARCHER_ENGINE_PYTHON", str(tmp_path / "nowhere"))

    code, out, _ = run(capsys, monkeypatch, "doctor", "--state-dir", str(tmp_path))

    (row,) = [line for line in out.splitlines() if line.startswith("engine environment")]
    assert code == 1
    assert "does not exist" in row
    assert row.rstrip().endswith("make setup")


def test_a_report_has_one_column_per_hop_count() -> None:
    optional = {name for name, field in Metrics.model_fields.items() if not field.is_required()}
    figures = dict.fromkeys(Metrics.model_fields.keys() - optional, 0.5) | {"num_questions": 4}
    metrics = Metrics.model_validate(figures)
    system = SystemReport(system=POLICY, overall=metrics, by_benchmark={}, by_hops={"1": metrics, "2": metrics})
    report = Report(
        id="r", title="r", weights="w", plan=RolloutPlan(), rules="searcher", created_at="now", seconds=1.0,
        systems=(system,), questions=(),
    )  # fmt: skip

    table = metrics_table(report)

    assert [column.header for column in table.columns] == ["", "all", "1 hop", "2 hops"]
    assert list(table.columns[0].cells)[:4] == ["questions", "EM", "cover-EM", "F1"]
    assert list(table.columns[1].cells)[:4] == ["4", "0.500", "0.500", "0.500"]
    assert "all evidence found" not in list(table.columns[0].cells)  # the data names none
