"""From a query to passages: snippets, pages, or the first summary, with real parts and a toy outside."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from searcher.contracts.errors import NotFound, UpstreamUnavailable
from searcher.contracts.search import Passage
from services.retriever.web.cassette import Cassette, CassetteMode
from services.retriever.web.chain import Chain
from services.retriever.web.exchange import Exchanger
from services.retriever.web.limits import Budget
from services.retriever.web.pages import PageReader
from services.retriever.web.providers import Hit, WebQuery
from services.retriever.web.searcher import Style, TextKind, WebSearcher, _cut
from services.retriever.web.summary import Summariser, said
from services.retriever.web.upstream import Terms, Upstream
from tests.web_toys import NEVER, Answer, ToyServer, toy_server

pytestmark = pytest.mark.anyio

PAGES = {"/rome": "Rome is the capital of Italy.", "/lazio": "Lazio is a region.", "/alps": "The Alps are high."}


class ToyProvider:
    """Finds the toy's pages for every query but "nothing"."""

    name = "toy"

    def __init__(self, toy: ToyServer) -> None:
        self.toy, self.queries = toy, list[WebQuery]()

    async def search(self, query: WebQuery, *, until: float) -> tuple[Hit, ...]:
        self.queries.append(query)
        if query.text == "nothing":
            return ()
        return tuple(
            Hit(title=path[1:], url=self.toy.url(path), snippet=f"About {path[1:]}", score=1 / rank, provider="toy")
            for rank, path in enumerate(PAGES, start=1)
        )


def completion(content: str | None) -> Answer:
    return Answer({"choices": [{"message": {"role": "assistant", "content": content}}]})


@pytest.fixture
async def toy() -> AsyncIterator[ToyServer]:
    async with toy_server() as toy:
        for path, text in PAGES.items():
            toy.says(path, Answer(text.encode(), headers={"Content-Type": "text/plain"}))
        yield toy


class Web:
    """A searcher whose whole outside is one toy server."""

    def __init__(self, toy: ToyServer) -> None:
        self.provider = ToyProvider(toy)
        self.exchanger = Exchanger()
        self.pages = PageReader(max_bytes=10_000, seconds=20.0, user_agent="", allowed=[("127.0.0.1", toy.port)])
        summariser = Upstream("summariser", self.exchanger, Terms(0.0, 1_000.0, 20.0), budget=Budget(0.0))
        self.summariser = Summariser(summariser, base_url=toy.url("/v1"), model="toy-1", key="k3y")

    def searcher(
        self, style: Style, cassette: Cassette | None = None, *, max_concurrent_queries: int = 8
    ) -> WebSearcher:
        return WebSearcher(
            style,
            cassette=cassette or Cassette(CassetteMode.OFF, None),
            chain=Chain([self.provider]),
            pages=self.pages,
            summariser=self.summariser,
            max_concurrent_queries=max_concurrent_queries,
        )

    async def ask(self, style: Style, *queries: str, k: int = 3) -> list[tuple[Passage, ...]]:
        return await self.searcher(style).search(queries, [k] * len(queries), deadline_seconds=60.0)


@pytest.fixture
async def web(toy: ToyServer) -> AsyncIterator[Web]:
    web = Web(toy)
    yield web
    await web.pages.close()
    await web.exchanger.close()


async def test_snippets_cost_no_page(web: Web, toy: ToyServer) -> None:
    (found,) = await web.ask(Style(), "capital of Italy", k=2)

    assert found == (
        Passage(id=toy.url("/rome"), title="rome", text="About rome", url=toy.url("/rome"), score=1.0),
        Passage(id=toy.url("/lazio"), title="lazio", text="About lazio", url=toy.url("/lazio"), score=0.5),
    )
    assert toy.received == []


async def test_queries_are_answered_in_their_order_and_identical_ones_asked_once(web: Web) -> None:
    found = await web.ask(Style(), "a", "nothing", "a", "b", k=1)

    assert [len(passages) for passages in found] == [1, 0, 1, 1]
    assert sorted(query.text for query in web.provider.queries) == ["a", "b", "nothing"]


async def test_site_and_language_reach_the_provider(web: Web) -> None:
    await web.ask(Style(site="en.wikipedia.org", language="de"), "a")

    assert web.provider.queries == [WebQuery("a", site="en.wikipedia.org", language="de")]


async def test_pages_are_shown_by_their_text_and_unreadable_ones_by_their_snippet(web: Web, toy: ToyServer) -> None:
    toy.says("/lazio", Answer(status=403))

    (found,) = await web.ask(Style(text=TextKind.PAGE), "capital of Italy")

    assert [passage.text for passage in found] == [PAGES["/rome"], "About lazio", PAGES["/alps"]]


async def test_only_the_pages_that_are_shown_are_read(web: Web, toy: ToyServer) -> None:
    await web.ask(Style(text=TextKind.PAGE), "capital of Italy", k=1)

    assert toy.num_asked == {"/rome": 1}


async def test_long_texts_are_cut(web: Web) -> None:
    (found,) = await web.ask(Style(text=TextKind.PAGE, max_passage_characters=13), "capital of Italy", k=1)

    assert found[0].text == "Rome is the"


# ---------------------------------------------------------------------------------------------------------------------
# Summaries


async def test_the_first_hit_that_says_something_is_the_passage(web: Web, toy: ToyServer) -> None:
    toy.says("/v1/chat/completions", completion("None."), completion("Lazio's capital is Rome."))

    (found,) = await web.ask(Style(text=TextKind.SUMMARY), "capital of Lazio")

    assert [(passage.title, passage.text) for passage in found] == [("lazio", "Lazio's capital is Rome.")]
    assert toy.num_asked == {"/rome": 1, "/lazio": 1, "/v1/chat/completions": 2}  # the third page is not read


async def test_the_model_reads_the_query_and_the_page(web: Web, toy: ToyServer) -> None:
    toy.says("/v1/chat/completions", completion("Rome."))

    await web.ask(Style(text=TextKind.SUMMARY, max_page_characters=12), "capital of Italy")

    (asked,) = toy.asked("/v1/chat/completions")
    assert asked.headers["authorization"] == "Bearer k3y"
    assert (asked.json["model"], asked.json["temperature"]) == ("toy-1", 0.0)
    (message,) = asked.json["messages"]
    assert "Search query: capital of Italy\n\nWeb page:\nRome is the\n\n" in message["content"]


async def test_when_no_page_says_anything_nothing_is_found(web: Web, toy: ToyServer) -> None:
    toy.says("/v1/chat/completions", completion("None"))

    assert await web.ask(Style(text=TextKind.SUMMARY), "capital of Italy") == [()]
    assert toy.num_asked["/v1/chat/completions"] == 3


@pytest.mark.parametrize("bad", [Answer(status=500), Answer({"choices": []}), completion(None), Answer(b"<html>")])
async def test_a_summariser_that_is_down_is_an_outage_and_not_nothing(web: Web, toy: ToyServer, bad: Answer) -> None:
    toy.says("/v1/chat/completions", bad)

    with pytest.raises(UpstreamUnavailable, match="the summariser did not answer"):
        await web.ask(Style(text=TextKind.SUMMARY), "capital of Italy")


@pytest.mark.parametrize("summary", ["None", "none", " None. ", '"None"', "**None**", "`None`", "", "\n", "(None)"])
def test_the_word_none_alone_says_nothing(summary: str) -> None:
    assert said(summary) is None


@pytest.mark.parametrize("summary", ["Nonetheless, Rome.", "None of his films won.", "It has none.", "Nonesuch"])
def test_a_sentence_with_none_in_it_says_something(summary: str) -> None:
    assert said(f" {summary}\n") == summary


# ---------------------------------------------------------------------------------------------------------------------
# Deadlines, outages, cassettes


async def test_what_takes_too_long_is_an_outage_that_says_how_far_it_came(web: Web, toy: ToyServer) -> None:
    toy.says("/rome", Answer(delay_seconds=NEVER))

    with pytest.raises(UpstreamUnavailable, match=r"1 of 2 queries were answered from the web within 1 s"):
        await web.searcher(Style(text=TextKind.PAGE)).search(["a", "nothing"], [1, 1], deadline_seconds=1.0)


async def test_a_recorded_run_is_replayed_whole_with_the_outside_gone(web: Web, toy: ToyServer, tmp_path: Path) -> None:
    toy.says("/rome", Answer(status=404))
    toy.says("/v1/chat/completions", completion("None"), completion("Lazio's capital is Rome."))
    queries = ["capital of Lazio", "nothing"]
    for kind in TextKind:
        recording = web.searcher(Style(text=kind), Cassette(CassetteMode.RECORD, tmp_path))
        recorded = await recording.search(queries, [3, 3], deadline_seconds=60.0)
        asked = len(toy.received)

        replaying = web.searcher(Style(text=kind), Cassette(CassetteMode.REPLAY, tmp_path))

        assert await replaying.search(queries, [3, 3], deadline_seconds=60.0) == recorded
        assert len(toy.received) == asked
    assert len(web.provider.queries) == 2  # the three kinds share their hits


async def test_replay_names_what_it_does_not_know(web: Web, tmp_path: Path) -> None:
    Cassette(CassetteMode.RECORD, tmp_path)
    replaying = web.searcher(Style(), Cassette(CassetteMode.REPLAY, tmp_path))

    with pytest.raises(NotFound, match="query 'capital of Spain' is not in the cassette"):
        await replaying.search(["capital of Spain"], [3], deadline_seconds=60.0)

    assert web.provider.queries == []


async def test_a_run_that_was_cut_off_goes_on_where_it_was(web: Web, toy: ToyServer, tmp_path: Path) -> None:
    cassette = Cassette(CassetteMode.RECORD, tmp_path)
    one_at_a_time = web.searcher(Style(text=TextKind.PAGE), cassette, max_concurrent_queries=1)
    toy.says("/alps", Answer(delay_seconds=NEVER), Answer(b"High.", headers={"Content-Type": "text/plain"}))
    cut_off = asyncio.create_task(one_at_a_time.search(["a", "b"], [2, 3], deadline_seconds=60.0))
    await toy.until_asked("/alps")
    cut_off.cancel()
    await asyncio.gather(cut_off, return_exceptions=True)

    found = await one_at_a_time.search(["a", "b"], [2, 3], deadline_seconds=60.0)

    assert [len(passages) for passages in found] == [2, 3]
    assert toy.num_asked == {"/rome": 1, "/lazio": 1, "/alps": 2}
    assert [query.text for query in web.provider.queries] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("one two", "one two"),
        ("one two three", "one two"),
        ("one two xx yy", "one two"),
        ("one tw xx", "one tw"),
        ("oneandtwoandthree", "oneandt"),
        ("one     two", "one"),
    ],
)
def test_texts_are_cut_between_words(text: str, cut: str) -> None:
    assert _cut(text, 7) == cut


async def test_an_entry_can_be_read_by_people(web: Web, tmp_path: Path) -> None:
    cassette = Cassette(CassetteMode.RECORD, tmp_path)

    await web.searcher(Style(), cassette).search(["Zürich"], [1], deadline_seconds=60.0)

    (entry,) = (tmp_path / "hits").glob("*/*.json")
    content = entry.read_text()
    assert "Zürich" in content
    assert json.loads(content)["asked"] == {"query": "Zürich", "site": None, "language": "en"}
