"""The journal of a selection: nothing that was answered is lost, nothing is mixed up."""

from pathlib import Path

import pytest
from selection_toys import make_asking

from searcher.contracts.errors import Conflict, InvalidInput
from searcher.selection.journal import Attempt, Journal


def attempt(question_id: str, number: int, *, correct: bool = False) -> Attempt:
    return Attempt(id=question_id, attempt=number, correct=correct, figure=float(correct), answer="Me")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "out.jsonl.journal.jsonl"


def test_what_was_added_is_there_again(path: Path) -> None:
    with Journal(path) as journal:
        journal.start(make_asking())
        journal.add([attempt("a", 1), attempt("b", 1, correct=True)])
        journal.add([attempt("a", 2)])

    with Journal(path) as journal:
        assert journal.asking == make_asking()
        assert journal.attempts == {"a": [attempt("a", 1), attempt("a", 2)], "b": [attempt("b", 1, correct=True)]}


def test_a_line_that_a_kill_cut_in_two_was_never_counted(path: Path) -> None:
    with Journal(path) as journal:
        journal.start(make_asking())
        journal.add([attempt("a", 1), attempt("a", 2)])
    whole = path.read_bytes()
    for end in range(0, len(whole) + 1, 7):
        path.write_bytes(whole[:end])

        with Journal(path) as journal:
            lines = whole[:end].count(b"\n")
            assert (journal.asking is None) == (lines == 0)
            assert len(journal.attempts.get("a", [])) == max(lines - 1, 0)
            journal.start(make_asking())
            journal.add([attempt("b", 1)])
        with Journal(path) as journal:
            assert len(journal.attempts["b"]) == 1


def test_other_settings_or_weights_are_refused_and_named(path: Path) -> None:
    with Journal(path) as journal:
        journal.start(make_asking())

    with Journal(path) as journal, pytest.raises(Conflict) as refused:
        journal.start(make_asking(rollouts=30, weights="run-1f0c9a2b-000042", temperature=0.7))

    for change in (
        "rollouts was 20, is 30",
        'weights was "base", is "run-1f0c9a2b-000042"',
        "plan.temperature was 1.0, is 0.7",
    ):
        assert change in str(refused.value)
    assert path.read_bytes().count(b"\n") == 1


def test_two_selections_do_not_write_one_journal(path: Path) -> None:
    with Journal(path), pytest.raises(Conflict, match="another selection"), Journal(path):
        pass


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": "a"}', ":2: not a line"),
        ("nothing", ":2: not a line"),
        ('{"id": "a", "attempt": 2, "correct": false, "figure": 0.0, "answer": null}', "attempt 2 follows 0"),
    ],
)
def test_a_file_that_is_no_journal_is_refused(path: Path, line: str, says: str) -> None:
    with Journal(path) as journal:
        journal.start(make_asking())
    with path.open("a") as file:
        file.write(f"{line}\n")

    with pytest.raises(InvalidInput, match=says), Journal(path):
        pass
    with Journal(path.with_name("another")):  # and it is not kept locked
        pass


def test_a_refused_journal_is_not_kept_locked(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("nothing\n")
    for _ in range(2):
        with pytest.raises(InvalidInput, match=":1: not a line"), Journal(path):
            pass
