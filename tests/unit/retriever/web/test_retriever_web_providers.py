"""Seven dialects: what is sent to each provider, and what is understood of its answers, over loopback."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.retriever.web.exchange import Exchanger
from services.retriever.web.limits import Budget
from services.retriever.web.providers import DIALECTS, Hit, Provider, ProviderName, WebQuery
from services.retriever.web.upstream import Outcome, Terms, Upstream, UpstreamFailed
from tests.web_toys import (
    HTML_ERROR,
    LAZIO,
    NOTHING_FOUND,
    ROME,
    SPOKEN,
    Answer,
    Received,
    ToyServer,
    ToyTime,
    toy_server,
)

pytestmark = pytest.mark.anyio

KEY = "s3cret-k3y"
NAMES = sorted(DIALECTS)


@pytest.fixture
async def toy() -> AsyncIterator[ToyServer]:
    async with toy_server() as toy:
        yield toy


@pytest.fixture
async def exchanger() -> AsyncIterator[Exchanger]:
    exchanger = Exchanger()
    yield exchanger
    await exchanger.close()


class Talk:
    """One query to one provider, whose address is the toy's."""

    def __init__(self, toy: ToyServer, exchanger: Exchanger) -> None:
        self.toy, self.exchanger, self.time = toy, exchanger, ToyTime()

    async def __call__(self, name: ProviderName, said: Any, query: WebQuery | None = None) -> tuple[Hit, ...]:
        answer = said if isinstance(said, Answer) else Answer(said)
        address = self.toy.says("/search", answer) + ("?cx=engine" if name == "google" else "")
        time, terms = self.time, Terms(0.0, 1_000.0, attempt_seconds=30.0)
        upstream = Upstream(name, self.exchanger, terms, budget=Budget(0.0), clock=time.clock, sleep=time.sleep)
        provider = Provider(DIALECTS[name], upstream, address=address, key=KEY)
        return await provider.search(query or WebQuery("capital of Italy"), until=time.now + 100.0)

    async def sent(self, name: ProviderName, query: WebQuery) -> Received:
        await self(name, NOTHING_FOUND[name], query)
        return self.toy.received[-1]


@pytest.fixture
def talk(toy: ToyServer, exchanger: Exchanger) -> Talk:
    return Talk(toy, exchanger)


@pytest.mark.parametrize("name", NAMES)
async def test_hits_are_the_same_whoever_found_them(talk: Talk, name: ProviderName) -> None:
    hits = await talk(name, SPOKEN[name])

    assert hits == tuple(
        Hit(title=title, url=url, snippet=snippet, score=score, provider=name)
        for (title, url, snippet), score in ((ROME, 1.0), (LAZIO, 0.5))
    )


@pytest.mark.parametrize("name", NAMES)
async def test_nothing_found_is_an_answer(talk: Talk, name: ProviderName) -> None:
    assert await talk(name, NOTHING_FOUND[name]) == ()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("said", [{}, {"message": "Unauthorized."}, [], "results", None, Answer(HTML_ERROR)])
async def test_what_is_not_its_answer_is_a_failure(talk: Talk, name: ProviderName, said: Any) -> None:
    with pytest.raises(UpstreamFailed) as failed:
        await talk(name, said)

    assert failed.value.outcome is Outcome.MALFORMED


LISTS: dict[ProviderName, str] = {
    "serper": "organic",
    "searxng": "results",
    "tavily": "results",
    "exa": "results",
    "serpapi": "organic_results",
    "google": "items",
}


@pytest.mark.parametrize("name", sorted(LISTS))
@pytest.mark.parametrize("no_list", [None, "x", 0, False, {}])
async def test_results_that_are_no_list_are_not_nothing_found(talk: Talk, name: ProviderName, no_list: Any) -> None:
    with pytest.raises(UpstreamFailed, match=f"{LISTS[name]}: .* instead of a list") as failed:
        await talk(name, {**SPOKEN[name], LISTS[name]: no_list})

    assert failed.value.outcome is Outcome.MALFORMED


@pytest.mark.parametrize("web", [None, [], "x", {}, {"results": None}, {"results": {}}])
async def test_braves_results_that_are_no_list_are_not_nothing_found(talk: Talk, web: Any) -> None:
    with pytest.raises(UpstreamFailed) as failed:
        await talk("brave", {**SPOKEN["brave"], "web": web})

    assert failed.value.outcome is Outcome.MALFORMED


@pytest.mark.parametrize("name", ["serper", "brave", "serpapi", "google"])
async def test_some_leave_the_list_out_when_nothing_is_found(talk: Talk, name: ProviderName) -> None:
    field = "web" if name == "brave" else LISTS[name]

    assert await talk(name, {key: value for key, value in SPOKEN[name].items() if key != field}) == ()


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("serper", ("headers", "x-api-key", KEY)),
        ("brave", ("headers", "x-subscription-token", KEY)),
        ("tavily", ("headers", "authorization", f"Bearer {KEY}")),
        ("exa", ("headers", "x-api-key", KEY)),
        ("serpapi", ("parameters", "api_key", KEY)),
        ("google", ("parameters", "key", KEY)),
    ],
)
async def test_the_key_goes_where_the_provider_looks(
    talk: Talk, name: ProviderName, where: tuple[str, str, str]
) -> None:
    kind, field, value = where

    sent = await talk.sent(name, WebQuery("capital of Italy"))

    assert getattr(sent, kind)[field] == value


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("serper", {"q": "capital site:en.wikipedia.org", "num": 10, "hl": "de"}),
        (
            "tavily",
            {"query": "capital", "max_results": 10, "search_depth": "basic", "include_domains": ["en.wikipedia.org"]},
        ),
        (
            "exa",
            {
                "query": "capital",
                "numResults": 10,
                "contents": {"highlights": True},
                "includeDomains": ["en.wikipedia.org"],
            },
        ),
    ],
)
async def test_posted_fields(talk: Talk, name: ProviderName, fields: dict[str, Any]) -> None:
    sent = await talk.sent(name, WebQuery("capital", site="en.wikipedia.org", language="de"))

    assert (sent.method, sent.json) == ("POST", fields)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("searxng", {"format": "json", "language": "de"}),
        ("brave", {"count": "10", "search_lang": "de", "text_decorations": "false"}),
        ("serpapi", {"engine": "google", "num": "10", "hl": "de", "api_key": KEY}),
        ("google", {"cx": "engine", "num": "10", "hl": "de", "key": KEY}),
    ],
)
async def test_parameters(talk: Talk, name: ProviderName, parameters: dict[str, str]) -> None:
    sent = await talk.sent(name, WebQuery("capital & 東京", site="en.wikipedia.org", language="de"))

    assert (sent.method, sent.parameters) == ("GET", {"q": "capital & 東京 site:en.wikipedia.org", **parameters})


async def test_without_a_site_the_whole_web_is_asked(talk: Talk) -> None:
    assert (await talk.sent("serper", WebQuery("capital"))).json["q"] == "capital"
    assert "include_domains" not in (await talk.sent("tavily", WebQuery("capital"))).json


async def test_a_query_is_cut_to_what_providers_read() -> None:
    assert WebQuery("a " * 60).words.split() == ["a"] * 50
    assert len(WebQuery("x" * 900).words) == 400
    assert len(WebQuery("x" * 900, site="a.org").words_and_site) == 400
    assert len(WebQuery("word " * 900, site="a.org").words_and_site.split()) == 50
    assert WebQuery(" two\n\twords ").words == "two words"


async def test_googles_answer_box_comes_first_and_its_page_only_once(talk: Talk) -> None:
    box = {"title": "Capital", "link": ROME[1], "snippet": "The capital is Rome.", "answer": "Rome"}

    hits = await talk("serper", {**SPOKEN["serper"], "answerBox": box})

    assert [(hit.title, hit.url, hit.snippet) for hit in hits] == [("Capital", ROME[1], "Rome"), LAZIO]


async def test_a_card_without_a_source_is_no_hit(talk: Talk) -> None:
    card = {"title": "Rome", "description": "Capital of Italy"}

    assert len(await talk("serper", {**SPOKEN["serper"], "knowledgeGraph": card})) == 2
    with_source = {**card, "descriptionLink": "https://en.wikipedia.org/wiki/Italy"}
    hits = await talk("serper", {**SPOKEN["serper"], "knowledgeGraph": with_source})
    assert hits[2].snippet == "Capital of Italy"


async def test_serpapis_related_questions_are_hits_too(talk: Talk) -> None:
    related = [
        {"question": "?", "title": "Italy", "link": "https://example.org/italy", "snippet": "Its capital is Rome."}
    ]

    hits = await talk("serpapi", {**SPOKEN["serpapi"], "related_questions": related})

    assert hits[2].url == "https://example.org/italy"


async def test_serpapis_other_errors_are_failures(talk: Talk) -> None:
    with pytest.raises(UpstreamFailed, match="Google is not available"):
        await talk("serpapi", {"search_metadata": {"status": "Error"}, "error": "Google is not available"})


async def test_searxng_whose_engines_are_all_blocked_has_not_found_nothing(talk: Talk) -> None:
    blocked = {"query": "x", "results": [], "unresponsive_engines": [["google", "CAPTCHA"]]}

    with pytest.raises(UpstreamFailed, match=r"engines do not respond.*CAPTCHA") as failed:
        await talk("searxng", blocked)

    assert failed.value.outcome is Outcome.FAILED
    assert len(await talk("searxng", {**SPOKEN["searxng"], "unresponsive_engines": [["google", "CAPTCHA"]]})) == 2


async def test_further_pieces_of_a_page_are_part_of_its_snippet(talk: Talk) -> None:
    row = {"title": "Rome", "url": ROME[1], "description": "Rome is the capital.", "extra_snippets": ["It is old.", 7]}

    (hit,) = await talk("brave", {"query": {}, "web": {"results": [row]}})

    assert hit.snippet == "Rome is the capital. … It is old."


@pytest.mark.parametrize(
    "row",
    [
        {"title": "no address", "snippet": "x"},
        {"title": "not the web", "link": "javascript:alert(1)", "snippet": "x"},
        {"title": "not text", "link": 7, "snippet": "x"},
        "no row",
        None,
    ],
)
async def test_rows_that_lead_nowhere_are_left_out(talk: Talk, row: Any) -> None:
    rows = [row, *SPOKEN["serper"]["organic"]]

    hits = await talk("serper", {"organic": rows})

    assert [(hit.url, hit.score) for hit in hits] == [(ROME[1], 1.0), (LAZIO[1], 0.5)]


async def test_odd_text_becomes_one_line_of_unicode(talk: Talk) -> None:
    row = {"title": None, "link": ROME[1], "snippet": "two\n lines \ud83d"}

    (hit,) = await talk("serper", {"organic": [row]})

    assert (hit.title, hit.snippet) == ("", "two lines ?")


async def test_no_more_than_ten_hits(talk: Talk) -> None:
    rows = [{"title": str(n), "url": f"https://example.org/{n}", "content": ""} for n in range(25)]

    assert [hit.title for hit in await talk("searxng", {"results": rows})] == [str(n) for n in range(10)]


async def test_errors_hold_neither_key_nor_address(talk: Talk, capfd: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        for bad in (Answer({}, status=401), Answer(status=500), Answer(HTML_ERROR), Answer(hang_up=True)):
            with pytest.raises(UpstreamFailed) as failed:
                await talk(name, bad)
            assert KEY not in f"{failed.value!r} {failed.value.__cause__!r}"

    assert KEY not in "".join(capfd.readouterr())
