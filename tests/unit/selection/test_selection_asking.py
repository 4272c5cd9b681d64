"""Asking: every question until its first right answer, once each, whatever happens to the service."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from selection_toys import NEVER, ToyRollouts, make_asking, make_questions

from searcher.contracts.errors import Conflict, InvalidInput, Overloaded, UpstreamUnavailable
from searcher.selection.asking import (
    QUESTIONS_PER_REQUEST,
    REQUESTS_IN_FLIGHT,
    Tally,
    ask_all,
    expected_rollouts,
    held_weights,
    labelled,
)
from searcher.selection.difficulty import Difficulty
from searcher.selection.journal import Journal

QUESTIONS = make_questions(70)
RIGHT_FROM = {question.id: (1, 9, 10, 20, NEVER)[number % 5] for number, question in enumerate(QUESTIONS)}
"""14 questions each: easy, easy, medium, medium, difficult."""
ROLLOUTS = 14 * (1 + 9 + 10 + 20 + 20)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal") as opened:
        opened.start(make_asking())
        yield opened


async def test_each_question_is_asked_until_its_first_right_answer(journal: Journal) -> None:
    toy = ToyRollouts(RIGHT_FROM)

    await ask_all(toy, QUESTIONS, journal)

    found = labelled(QUESTIONS, journal)
    assert [each.question.id for each in found] == [question.id for question in QUESTIONS]
    for each in found:
        first = RIGHT_FROM[each.question.id]
        assert (each.first_correct, each.num_asked) == ((None, 20) if first == NEVER else (first, first))
    assert Counter(each.difficulty for each in found) == {
        Difficulty.EASY: 28,
        Difficulty.MEDIUM: 28,
        Difficulty.DIFFICULT: 14,
    }
    assert toy.asked.total() == ROLLOUTS
    assert set(toy.asked.values()) == {1}


async def test_everybody_takes_turns_and_requests_are_shared_out(journal: Journal) -> None:
    toy = ToyRollouts(RIGHT_FROM)

    await ask_all(toy, QUESTIONS, journal)

    first_round = [request for request in toy.requests if request[0][1] == 1]
    assert max(map(len, toy.requests)) <= QUESTIONS_PER_REQUEST
    assert [len(request) for request in first_round[: REQUESTS_IN_FLIGHT - 1]] == [9] * (REQUESTS_IN_FLIGHT - 1)
    assert all(len({attempt for _, attempt in request}) == 1 for request in toy.requests)
    attempts = [request[0][1] for request in toy.requests]
    assert all(later >= earlier - 1 for earlier, later in pairwise(attempts))


async def test_who_goes_on_asks_only_what_is_left(tmp_path: Path) -> None:
    toy = ToyRollouts(RIGHT_FROM)
    for stop_after in (7, 30, NEVER):
        toy.trouble = lambda number, last=len(toy.requests) + stop_after: (
            InvalidInput("corpus: gone") if number > last else None
        )
        with Journal(tmp_path / "journal") as journal:
            journal.start(make_asking())
            if stop_after < NEVER:
                with pytest.raises(InvalidInput, match="corpus: gone"):
                    await ask_all(toy, QUESTIONS, journal)
            else:
                await ask_all(toy, QUESTIONS, journal)

            counted = sum(map(len, journal.attempts.values()))

    assert counted == ROLLOUTS == toy.asked.total()
    assert set(toy.asked.values()) == {1}


async def test_an_outage_is_waited_out_and_is_no_wrong_answer(journal: Journal) -> None:
    toy, seen = ToyRollouts(RIGHT_FROM), list[str | None]()
    toy.trouble = lambda number: (
        UpstreamUnavailable("retriever is away", retry_after_seconds=0.001)
        if number % 3 == 0
        else Overloaded("too much", retry_after_seconds=0.001)
        if number % 5 == 0
        else None
    )

    await ask_all(toy, QUESTIONS, journal, on_progress=lambda tally: seen.append(tally.outage))

    assert {each.first_correct for each in labelled(QUESTIONS, journal)} == {1, 9, 10, 20, None}
    assert toy.asked.total() == ROLLOUTS
    assert "retriever is away" in seen
    assert seen[-1] is None


async def test_an_outage_that_does_not_end_is_an_error_and_nothing_is_lost(journal: Journal) -> None:
    toy = ToyRollouts(RIGHT_FROM)
    toy.trouble = lambda number: UpstreamUnavailable("away", retry_after_seconds=0.001) if number > 20 else None

    with pytest.raises(UpstreamUnavailable, match="away"):
        await ask_all(toy, QUESTIONS, journal, outage_seconds=0.01)

    counted = {(line.id, line.attempt) for lines in journal.attempts.values() for line in lines}
    assert counted == set(toy.asked)


async def test_weights_that_change_meanwhile_end_it(journal: Journal) -> None:
    toy = ToyRollouts(RIGHT_FROM)

    def update(number: int) -> None:
        toy.held = "base" if number <= 20 else "run-1f0c9a2b-000001"

    toy.trouble = update

    with pytest.raises(Conflict, match="run-1f0c9a2b-000001"):
        await ask_all(toy, QUESTIONS, journal)

    assert {(line.id, line.attempt) for lines in journal.attempts.values() for line in lines} == set(toy.asked)


async def test_the_engines_weights_are_told() -> None:
    assert await held_weights(ToyRollouts({}, weights="run-1f0c9a2b-000001")) == "run-1f0c9a2b-000001"


async def test_progress_counts_up_to_all_questions(journal: Journal) -> None:
    seen: list[tuple[int, int]] = []

    await ask_all(
        ToyRollouts(RIGHT_FROM),
        QUESTIONS,
        journal,
        on_progress=lambda tally: seen.append((tally.num_finished, tally.num_asked)),
    )

    assert seen[0] == (0, 0)
    assert seen == sorted(seen)
    assert seen[-1] == (70, ROLLOUTS)


def test_rollouts_still_to_come_are_expected_as_a_cut_geometric_mean() -> None:
    # p = 1/2, at most 3: 1/2 x 1 + 1/4 x 2 + 1/4 x 3 = 1.75
    assert expected_rollouts(0.5, 3) == pytest.approx(1.75)
    assert expected_rollouts(1.0, 7) == 1.0
    assert expected_rollouts(0.0, 7) == 7.0


def test_the_time_left_follows_from_speed_and_share_of_right_answers() -> None:
    tally = Tally(num_questions=10, rollouts=3)
    tally.open_attempts.update({0: 4, 2: 8})
    assert tally.seconds_left() is None

    tally.newest.extend([(100.0, 10, 5), (102.0, 20, 10)])  # 20 rollouts in 2 s; half are right

    # 4 questions x 1.75 + 8 x 1 = 15 rollouts at 10 a second
    assert tally.seconds_left() == pytest.approx(1.5)
