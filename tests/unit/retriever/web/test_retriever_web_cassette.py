"""Recorded once, played for ever; by several processes; and never half an answer."""

import asyncio
import json
import math
import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from searcher.contracts.errors import BudgetSpent, InvalidInput, NotFound, SearcherError, UpstreamUnavailable
from services.retriever.web.cassette import Ask, Cassette, CassetteMode

pytestmark = pytest.mark.anyio

ASKED = {"query": "capital of Italy", "site": None}


class Outside:
    """What would be asked; counts how often it is."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.num_asked = list(answers), 0

    async def __call__(self, until: float) -> Any:
        self.num_asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def play(cassette: Cassette, ask: Ask, asked: Any = ASKED, *, until: float = math.inf) -> Any:
    return await cassette.play("hits", asked, ask, name="query 'capital of Italy'", until=until)


async def nobody(until: float) -> Any:
    raise AssertionError("replay asks nobody")


async def test_what_was_recorded_is_replayed_without_asking(tmp_path: Path) -> None:
    answer = [{"title": "Rome 東京", "score": 1 / 3}]

    recorded = await play(Cassette(CassetteMode.RECORD, tmp_path), Outside(answer))
    replayed = await play(Cassette(CassetteMode.REPLAY, tmp_path), nobody)

    assert recorded == replayed == answer


async def test_recording_asks_once_for_the_same(tmp_path: Path) -> None:
    outside = Outside(["first"], ["second"])

    for _ in range(2):
        assert await play(Cassette(CassetteMode.RECORD, tmp_path), outside) == ["first"]

    assert outside.num_asked == 1


async def test_off_asks_every_time(tmp_path: Path) -> None:
    outside, cassette = Outside(["first"], ["second"]), Cassette(CassetteMode.OFF, tmp_path)

    assert [await play(cassette, outside), await play(cassette, outside)] == [["first"], ["second"]]
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240


async def test_other_questions_have_other_answers(tmp_path: Path) -> None:
    cassette = Cassette(CassetteMode.RECORD, tmp_path)
    await play(cassette, Outside("rome"))

    for other in ({**ASKED, "site": "en.wikipedia.org"}, {**ASKED, "query": "capital of Italy "}):
        assert await play(cassette, Outside("other"), other) == "other"
    assert await cassette.play("page", ASKED, Outside("page"), name="page") == "page"


async def test_none_is_an_answer(tmp_path: Path) -> None:
    assert await play(Cassette(CassetteMode.RECORD, tmp_path), Outside(None)) is None
    assert await play(Cassette(CassetteMode.REPLAY, tmp_path), nobody) is None


async def test_what_replay_does_not_know_is_named(tmp_path: Path) -> None:
    Cassette(CassetteMode.RECORD, tmp_path)

    with pytest.raises(NotFound, match=r"query 'capital of Italy' is not in the cassette .* record it first"):
        await play(Cassette(CassetteMode.REPLAY, tmp_path), nobody)


async def test_a_failure_is_not_recorded(tmp_path: Path) -> None:
    cassette, outside = Cassette(CassetteMode.RECORD, tmp_path), Outside(OSError("down"), ["rome"])

    with pytest.raises(OSError, match="down"):
        await play(cassette, outside)

    assert await play(cassette, outside) == ["rome"]


async def test_identical_questions_in_flight_are_one(tmp_path: Path) -> None:
    for mode in (CassetteMode.OFF, CassetteMode.RECORD):
        cassette, outside = Cassette(mode, tmp_path), Outside(["rome"])

        answers = await asyncio.gather(*(play(cassette, outside) for _ in range(16)))

        assert (answers, outside.num_asked) == ([["rome"]] * 16, 1)


async def test_one_who_leaves_does_not_take_the_answer_away_from_the_others() -> None:
    cassette, go, asked = Cassette(CassetteMode.OFF, None), asyncio.Event(), []

    async def ask(until: float) -> Any:
        asked.append(1)
        await go.wait()
        return "rome"

    first, second = (asyncio.create_task(play(cassette, ask)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    go.set()

    assert (await second, len(asked)) == ("rome", 1)


async def test_when_all_have_left_nobody_is_asked_any_more_and_the_next_asks_anew() -> None:
    cassette, left = Cassette(CassetteMode.OFF, None), []

    async def for_ever(until: float) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            left.append(1)

    callers = [asyncio.create_task(play(cassette, for_ever)) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)

    assert await play(cassette, Outside("rome")) == "rome"
    assert left == [1]


class Slow:
    """Takes until the clock says 10; who gives it less is told in time."""

    def __init__(self) -> None:
        self.given: list[float] = []
        self.is_asked, self.is_late = asyncio.Event(), asyncio.Event()

    async def __call__(self, until: float) -> Any:
        self.given.append(until)
        self.is_asked.set()
        if until < 10.0:
            await self.is_late.wait()
            raise UpstreamUnavailable(f"not within {until}")
        return "rome"


async def test_who_has_time_left_does_not_fail_with_one_who_has_none(tmp_path: Path) -> None:
    for mode in (CassetteMode.OFF, CassetteMode.RECORD):
        cassette, slow = Cassette(mode, tmp_path), Slow()
        first = asyncio.create_task(play(cassette, slow, until=5.0))
        await slow.is_asked.wait()
        others = [asyncio.create_task(play(cassette, slow, until=until)) for until in (20.0, 30.0, 6.0)]
        await asyncio.sleep(0)
        slow.is_late.set()

        assert await asyncio.gather(first, *others) == ["rome"] * 4
        assert slow.given == [5.0, 30.0]


async def test_a_failure_is_shared_by_those_who_have_no_more_time_than_was_given() -> None:
    cassette, slow = Cassette(CassetteMode.OFF, None), Slow()
    first = asyncio.create_task(play(cassette, slow, until=5.0))
    await slow.is_asked.wait()
    others = [asyncio.create_task(play(cassette, slow, until=until)) for until in (5.001, 4.0)]
    has_left = asyncio.create_task(play(cassette, slow, until=20.0))
    await asyncio.sleep(0)
    has_left.cancel()
    await asyncio.gather(has_left, return_exceptions=True)
    slow.is_late.set()

    failures = await asyncio.gather(first, *others, return_exceptions=True)

    assert [str(failure) for failure in failures] == ["not within 5.0"] * 3
    assert slow.given == [5.0]


async def test_without_a_limit_there_is_no_more_time_to_ask_again_with() -> None:
    outside = Outside(UpstreamUnavailable("down"), "rome")

    with pytest.raises(UpstreamUnavailable):
        await play(Cassette(CassetteMode.OFF, None), outside, until=math.inf)

    assert outside.num_asked == 1


async def test_other_failures_are_not_tried_again_for_those_with_more_time() -> None:
    cassette, go, asked = Cassette(CassetteMode.OFF, None), asyncio.Event(), []

    async def ask(until: float) -> Any:
        asked.append(until)
        await go.wait()
        raise BudgetSpent("0 USD are left")

    first = asyncio.create_task(play(cassette, ask, until=5.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.create_task(play(cassette, ask, until=50.0))
    await asyncio.sleep(0)
    go.set()

    failures = await asyncio.gather(first, second, return_exceptions=True)

    assert ([type(failure) for failure in failures], asked) == ([BudgetSpent] * 2, [5.0])


def _record(folder: Path, name: str) -> None:
    async def run() -> list[Any]:
        cassette = Cassette(CassetteMode.RECORD, folder)

        async def one(number: int) -> Any:
            async def ask(until: float) -> Any:
                await asyncio.sleep(0.001)
                return [name, number] * 200

            return await cassette.play("hits", {"query": str(number)}, ask, name="")

        return await asyncio.gather(*(one(number) for number in range(60)))

    (folder / f"{name}.seen").write_text(json.dumps(asyncio.run(run())))


def test_processes_that_record_the_same_agree_on_one_answer(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    recorders = [spawn.Process(target=_record, args=(tmp_path, name)) for name in ("a", "b", "c")]
    for recorder in recorders:
        recorder.start()
    for recorder in recorders:
        recorder.join()

    seen = [json.loads((tmp_path / f"{name}.seen").read_text()) for name in ("a", "b", "c")]
    assert seen[0] == seen[1] == seen[2]
    assert len(list((tmp_path / "hits").glob("*/*.json"))) == 60
    assert list((tmp_path / "hits").glob("*/.*")) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:10],
        lambda content: content.replace("rome", "milan"),
        lambda content: content.replace("capital of Italy", "capital of Spain"),
        lambda content: content.replace('"answer"', '"reply"'),
        lambda content: content.replace('"sha256"', '"md5"'),
        lambda content: json.dumps({"asked": ASKED, "answer": "milan"}),
        lambda content: "[]",
        lambda content: "{}",
        lambda content: "[" * 200_000,
    ],
    ids=["cut", "answer", "question", "no answer", "no checksum", "by hand", "list", "empty", "nested"],
)
async def test_a_damaged_entry_is_an_error_that_names_the_file(tmp_path: Path, damage: Callable[[str], str]) -> None:
    await play(Cassette(CassetteMode.RECORD, tmp_path), Outside("rome"))
    (entry,) = (tmp_path / "hits").glob("*/*.json")
    entry.write_text(damage(entry.read_text()))

    for mode in (CassetteMode.REPLAY, CassetteMode.RECORD):
        with pytest.raises(SearcherError, match=rf"{entry.name} is damaged .* delete it and record it again"):
            await play(Cassette(mode, tmp_path), nobody)


async def test_an_answer_to_another_question_is_damage_too(tmp_path: Path) -> None:
    cassette = Cassette(CassetteMode.RECORD, tmp_path)
    await play(cassette, Outside("rome"))
    (rome,) = (tmp_path / "hits").glob("*/*.json")
    await play(cassette, Outside("madrid"), {"query": "capital of Spain", "site": None})
    (madrid,) = {*(tmp_path / "hits").glob("*/*.json")} - {rome}
    rome.write_bytes(madrid.read_bytes())

    with pytest.raises(SearcherError, match=rf"{rome.name} is damaged"):
        await play(Cassette(CassetteMode.REPLAY, tmp_path), nobody)


def test_a_cassette_keeps_its_name(tmp_path: Path) -> None:
    recorded = Cassette(CassetteMode.RECORD, tmp_path / "a").id

    assert (
        recorded == Cassette(CassetteMode.RECORD, tmp_path / "a").id == Cassette(CassetteMode.REPLAY, tmp_path / "a").id
    )
    assert recorded != Cassette(CassetteMode.RECORD, tmp_path / "b").id
    assert Cassette(CassetteMode.OFF, None).id != Cassette(CassetteMode.OFF, None).id


def test_a_cassette_that_cannot_be_played_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="RETRIEVER_WEB_CASSETTE: name a folder"):
        Cassette(CassetteMode.RECORD, None)
    with pytest.raises(InvalidInput, match=r"holds no cassette\.json"):
        Cassette(CassetteMode.REPLAY, tmp_path)
    (tmp_path / "cassette.json").write_text('{"format": 99, "id": "x"}')
    with pytest.raises(InvalidInput, match="is not of format 2"):
        Cassette(CassetteMode.RECORD, tmp_path)
