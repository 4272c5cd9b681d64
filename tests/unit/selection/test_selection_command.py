"""`searcher data select` and `searcher data overlap` as a terminal runs them, against a toy rollout service."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from selection_toys import NEVER, ToyRollouts, make_questions, served, write_questions

from searcher.cli.main import main
from searcher.questions import load_questions

NOBODY = "http://127.0.0.1:9"
COUNT = 40
RIGHT_FROM = {question.id: (1, 10, 20, NEVER)[number % 4] for number, question in enumerate(make_questions(COUNT))}


@dataclass
class Terminal:
    folder: Path
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def run(self, url: str, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        self.monkeypatch.setenv("SEARCHER_ROLLOUT_URL", url)
        self.monkeypatch.setattr(sys, "argv", ["searcher", "data", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self.capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), out, err

    def start(self, url: str, *arguments: str) -> "subprocess.Popen[str]":
        code = "from searcher.cli.main import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, "data", *arguments],
            env={**os.environ, "SEARCHER_ROLLOUT_URL": url},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    @property
    def selected(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "out.jsonl").read_text().splitlines()]


@pytest.fixture
def terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """In an empty folder, with no deployment on this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("SEARCHER_STATE_DIR", str(tmp_path / "state"))
    return Terminal(tmp_path, capsys, monkeypatch)


def journal_lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "out.jsonl.journal.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()[1:]]


def test_a_selection_is_labelled_mixed_and_says_where_it_comes_from(terminal: Terminal, tmp_path: Path) -> None:
    write_questions(tmp_path / "candidates.jsonl", COUNT)
    toy = ToyRollouts(RIGHT_FROM, weights="run-1f0c9a2b-000042")

    with served(toy) as url:
        code, out, err = terminal.run(
            url, "select", "candidates.jsonl", "--out", "out.jsonl", "--mix", "medium=1,difficult=1"
        )

    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "easy below 10 10 10 0 0%" in lines  # 10 questions, 10 rollouts
    assert "medium 10 to 20 20 300 10 50%" in lines  # 10 x 10 + 10 x 20 rollouts
    assert "difficult above 20, or never 10 200 10 50%" in lines
    rows = terminal.selected
    assert Counter(row["difficulty"] for row in rows) == {"medium": 10, "difficult": 10}
    for row in rows:
        first = RIGHT_FROM[row["id"]]
        asked = row["selection"]
        assert (asked["first_correct"], asked["rollouts"]) == ((None, 20) if first == NEVER else (first, first))
        assert asked["weights"] == "run-1f0c9a2b-000042"
        assert (asked["rules"], asked["correct"], asked["seed"]) == ("searcher", "cover_em", 0)
        assert asked["plan"]["temperature"] == 1.0
        assert len(asked["candidates_sha256"]) == 64
    assert [q.question for q in load_questions(tmp_path / "out.jsonl")] == [row["question"] for row in rows]


def test_a_complete_journal_is_mixed_anew_without_asking_anybody(terminal: Terminal, tmp_path: Path) -> None:
    write_questions(tmp_path / "candidates.jsonl", COUNT)
    with served(ToyRollouts(RIGHT_FROM)) as url:
        assert terminal.run(url, "select", "candidates.jsonl", "--out", "out.jsonl")[0] == 0
    assert len(load_questions(tmp_path / "out.jsonl")) == COUNT

    again = ("select", "candidates.jsonl", "--out", "out.jsonl", "--mix", "medium=1", "--size", "7")
    code, _, err = terminal.run(NOBODY, *again)

    assert (code, err) == (0, "")
    assert len(load_questions(tmp_path / "out.jsonl")) == 7


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_it_goes_on_and_asks_no_finished_question_again(
    terminal: Terminal, tmp_path: Path, how: signal.Signals
) -> None:
    write_questions(tmp_path / "candidates.jsonl", COUNT)
    arguments = ("select", "candidates.jsonl", "--out", "out.jsonl")
    enough, released = (lambda: len(journal_lines(tmp_path)) >= 300), threading.Event()

    with served(ToyRollouts(RIGHT_FROM), slow=lambda: released.wait() if enough() else None) as url:
        first = terminal.start(url, *arguments)
        while not enough() and first.poll() is None:
            time.sleep(0.01)
        first.send_signal(how)
        out, _ = first.communicate()
        released.set()

    known = journal_lines(tmp_path)
    assert first.returncode != 0
    assert 300 <= len(known) < 510
    assert not (tmp_path / "out.jsonl").exists()
    assert ("the same command goes on" in out) == (how is signal.SIGINT)
    toy = ToyRollouts(RIGHT_FROM)

    with served(toy) as url:
        code, _, err = terminal.run(url, *arguments)

    assert (code, err) == (0, "")
    finished = {line["id"] for line in known if line["correct"] or line["attempt"] == 20}
    assert finished
    assert not finished & {question_id for question_id, _ in toy.asked}
    assert set(toy.asked.values()) == {1}
    assert set(toy.asked) == {(line["id"], line["attempt"]) for line in journal_lines(tmp_path)[len(known) :]}
    assert len(journal_lines(tmp_path)) == 10 * (1 + 10 + 20 + 20)
    found = {row["id"]: row["selection"]["first_correct"] for row in terminal.selected}
    assert found == {question_id: None if first == NEVER else first for question_id, first in RIGHT_FROM.items()}


@pytest.mark.parametrize(
    ("arguments", "weights", "says"),
    [
        (("--temperature", "0.7"), "base", "plan.temperature was 1.0, is 0.7"),
        (("--rollouts", "30"), "base", "rollouts was 20, is 30"),
        (("--correct", "em"), "base", 'correct was "cover_em", is "em"'),
        ((), "run-1f0c9a2b-000001", 'weights was "base", is "run-1f0c9a2b-000001"'),
    ],
)
def test_other_settings_or_weights_do_not_go_on(
    terminal: Terminal, tmp_path: Path, arguments: tuple[str, ...], weights: str, says: str
) -> None:
    write_questions(tmp_path / "candidates.jsonl", COUNT)
    toy = ToyRollouts(RIGHT_FROM)
    with served(toy) as url:
        assert terminal.run(url, "select", "candidates.jsonl", "--out", "out.jsonl")[0] == 0
        journal = tmp_path / "out.jsonl.journal.jsonl"
        journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:50]))
        toy.held = weights

        code, _, err = terminal.run(url, "select", "candidates.jsonl", "--out", "out.jsonl", *arguments)

    assert code == 1
    assert says in err
    assert err.count("\n") == 1


def test_changed_candidates_do_not_go_on(terminal: Terminal, tmp_path: Path) -> None:
    write_questions(tmp_path / "candidates.jsonl", COUNT)
    with served(ToyRollouts(RIGHT_FROM)) as url:
        terminal.run(url, "select", "candidates.jsonl", "--out", "out.jsonl")
        write_questions(tmp_path / "candidates.jsonl", COUNT - 1)

        code, _, err = terminal.run(url, "select", "candidates.jsonl", "--out", "out.jsonl")

    assert code == 1
    assert "candidates_sha256 was" in err


def test_evaluation_questions_are_refused_allowed_or_left_out(terminal: Terminal, tmp_path: Path) -> None:
    write_questions(tmp_path / "candidates.jsonl", 8)
    (tmp_path / "eval.jsonl").write_text('{"question": "who is NUMBER 3", "answer": "Me"}\n')
    arguments = ("select", "candidates.jsonl", "--out", "out.jsonl", "--against", "eval.jsonl")
    toy = ToyRollouts(dict.fromkeys(RIGHT_FROM, 1))

    with served(toy) as url:
        refused = terminal.run(url, *arguments)
        assert not toy.requests
        allowed = terminal.run(url, *arguments, "--allow-overlap")
        kept = [q.id for q in load_questions(tmp_path / "out.jsonl")]
        left_out = terminal.run(url, *arguments, "--drop-overlap")

    assert refused[0] == 1
    assert "candidates.jsonl shares 1 of its questions with eval.jsonl: q003 = 1 'Who is number 3?'" in refused[2]
    assert (allowed[0], "allowed: candidates.jsonl shares 1" in allowed[1], len(kept)) == (0, True, 8)
    assert (left_out[0], "left out: candidates.jsonl shares 1" in left_out[1]) == (0, True)
    assert [q.id for q in load_questions(tmp_path / "out.jsonl")] == [name for name in kept if name != "q003"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--mix", "hard=1"), "--mix: 'hard=1' is not LABEL=NUMBER"),
        (("--correct", "judge"), "--correct: 'judge' is not one of cover_em, em, f1"),
        (("--temperature", "0"), "--temperature: at 0 all rollouts of a question are the same"),
        (("--size", "0"), "--size: 0 selects nothing"),
        (("--against", "missing.jsonl"), "missing.jsonl: no such file"),
        (("--out", "candidates.jsonl"), "is the candidates' file"),
        (("--answers", "pred_anses"), "candidates.jsonl:1: pred_anses: expected a list of answers"),
        (("--outage-minutes", "0"), "rollout at http://127.0.0.1:9 did not answer"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_asked(
    terminal: Terminal, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    write_questions(tmp_path / "candidates.jsonl", 3)

    code, _, err = terminal.run(NOBODY, "select", "candidates.jsonl", "--out", "out.jsonl", *arguments)

    assert code == 1
    assert says in err.splitlines()[0]


def test_recorded_answers_are_labelled_by_the_same_rule(terminal: Terminal, tmp_path: Path) -> None:
    wrong, right = "You", "It is me"
    rows = [
        {"idx": 1, "question": "A?", "answer": "me", "pred": [right, wrong]},
        {"idx": 2, "question": "B?", "answer": "me", "pred": [wrong] * 9 + [right]},
        {"idx": 3, "question": "C?", "answer": "me", "pred": [wrong] * 10},
    ]
    (tmp_path / "candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    code, out, _ = terminal.run(NOBODY, "select", "candidates.jsonl", "--out", "out.jsonl", "--answers", "pred")

    assert code == 0
    assert "1 of the difficult ones were asked at most 10 times" in out
    selected = terminal.selected
    assert [row["difficulty"] for row in selected] == ["easy", "medium", "difficult"]
    assert [row["selection"]["recorded_in"] for row in selected] == ["pred"] * 3
    assert not (tmp_path / "out.jsonl.journal.jsonl").exists()


@pytest.mark.data
def test_the_published_stage_1_file_is_not_what_the_published_rule_gives(terminal: Terminal, data_dir: Path) -> None:
    """Its questions are called medium; by its own ten answers, 287 of 350 are easy."""
    stage_1 = data_dir / "r1_searcher" / "training_set" / "stage_1.jsonl"

    code, _, _ = terminal.run(NOBODY, "select", str(stage_1), "--out", "out.jsonl", "--answers", "pred_anses")

    labels = Counter(row["difficulty"] for row in terminal.selected)
    assert (code, labels) == (0, {"easy": 287, "medium": 63})


def test_overlap_prints_every_pair_and_fails_where_that_is_asked(terminal: Terminal, tmp_path: Path) -> None:
    write_questions(tmp_path / "a.jsonl", 5)
    write_questions(tmp_path / "b.jsonl", 3)
    (tmp_path / "c.jsonl").write_text('{"question": "Something else?", "answer": "Me"}\n')

    code, out, _ = terminal.run("", "overlap", "a.jsonl", "b.jsonl", "c.jsonl", "--list")
    failing, _, _ = terminal.run("", "overlap", "a.jsonl", "b.jsonl", "--fail")
    passing, as_json, _ = terminal.run("", "overlap", "a.jsonl", "c.jsonl", "--fail", "--json")

    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0
    assert "a.jsonl b.jsonl 3 0" in lines
    assert "b.jsonl c.jsonl 0 0" in lines
    assert "q002 = q002 (same text) Who is number 2?" in lines
    assert (failing, passing) == (1, 0)
    assert json.loads(as_json) == {"a": "a.jsonl", "b": "c.jsonl", "text": 0, "id": 0, "ids": []}
