"""The real client against the real service in front of the web: providers, pages and a summariser on loopback."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from searcher.clients.retriever import RetrieverClient
from searcher.contracts.errors import NotFound, UpstreamUnavailable
from services.retriever.app import create_app
from services.retriever.settings import RetrieverSettings
from services.retriever.web.settings import WebSettings
from tests.web_toys import HTML_ERROR, LAZIO, NEVER, ROME, SPOKEN, Answer, ToyServer, toy_server

pytestmark = pytest.mark.anyio

KEY = "s3cret-k3y"
SUMMARY = "Rome has been the capital of Italy since 1871."


@pytest.fixture
async def toy() -> AsyncIterator[ToyServer]:
    async with toy_server() as toy:
        for name, said in SPOKEN.items():
            toy.says(f"/{name}", Answer(said))
        yield toy


@pytest.fixture
def keys_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir()
    for name in (*SPOKEN, "summariser"):
        (folder / name).write_text(KEY)
    return folder


class Serve:
    """The service with some settings, its providers being the toy's."""

    def __init__(self, toy: ToyServer, keys_dir: Path) -> None:
        self.toy, self.keys_dir = toy, keys_dir

    @asynccontextmanager
    async def __call__(self, *providers: str, **web: Any) -> AsyncIterator[httpx.ASGITransport]:
        settings = WebSettings(
            providers=providers,
            keys_dir=self.keys_dir,
            urls={name: self.toy.url(f"/{name}") for name in SPOKEN},
            allowed_addresses=(("127.0.0.1", self.toy.port),),
            **{"budget_usd": 1.0, "provider_seconds": 0.5, **web},
        )
        app = create_app(RetrieverSettings(backend="web", web=settings))
        async with app.router.lifespan_context(app):
            yield httpx.ASGITransport(app)


@pytest.fixture
def serve(toy: ToyServer, keys_dir: Path) -> Serve:
    return Serve(toy, keys_dir)


def client_of(transport: httpx.ASGITransport) -> RetrieverClient:
    return RetrieverClient("http://retriever", transport=transport, attempts=1)


def http_of(transport: httpx.ASGITransport) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=transport, base_url="http://retriever")


@pytest.mark.parametrize("provider", sorted(SPOKEN))
async def test_passages_come_from_every_provider(serve: Serve, provider: str) -> None:
    async with serve(provider) as transport, client_of(transport) as client:
        (found,) = await client.search(["capital of Italy"], k=3)

    assert [(passage.title, passage.id, passage.text) for passage in found] == [ROME, LAZIO]
    assert [(passage.url, passage.score) for passage in found] == [(ROME[1], 1.0), (LAZIO[1], 0.5)]


async def test_the_drop_in_routes_answer_from_the_web_too(serve: Serve) -> None:
    async with serve("serper") as transport, http_of(transport) as http:
        r1 = (await http.post("/queries", json={"queries": ["capital"], "k": 1})).json()
        search_r1 = (
            await http.post("/retrieve", json={"queries": ["capital"], "topk": 1, "return_scores": True})
        ).json()
        corpora = (await http.get("/v1/corpora")).json()
        ready = await http.get("/readyz")

    assert r1 == {"queries": ["capital"], "answers": [[f"1\tTitle: {ROME[0]} Text:  {ROME[2]}"]]}
    document = search_r1["result"][0][0]["document"]
    assert (document["id"], document["contents"]) == (ROME[1], f'"{ROME[0]}"\n{ROME[2]}')
    assert [(corpus["name"], corpus["kind"]) for corpus in corpora] == [("default", "web"), ("web", "web")]
    assert ready.status_code == 200


async def test_a_page_is_read_by_its_address_but_not_from_inside(serve: Serve, toy: ToyServer) -> None:
    page = toy.says("/page", Answer(b"The whole page.", headers={"Content-Type": "text/plain"}))
    inside = "http://169.254.169.254/latest/meta-data/"

    async with serve("serper") as transport, http_of(transport) as http:
        found = (await http.post("/access", json={"urls": [page, inside]})).json()["result"]

    assert "The whole page." in json.dumps(found[0])
    assert found[1] is None


async def test_a_page_that_takes_longer_than_its_caller_is_an_outage_and_not_kept_as_unreadable(
    serve: Serve, toy: ToyServer, tmp_path: Path
) -> None:
    text = Answer(b"The whole page.", headers={"Content-Type": "text/plain"})
    slow = toy.says("/slow", Answer(delay_seconds=NEVER), text)
    tape = {"cassette": tmp_path / "cassette", "cassette_mode": "record"}

    async with serve("serper", **tape) as transport, http_of(transport) as http:
        late = await http.post("/access", json={"urls": [slow]}, headers={"X-Request-Timeout": "0.2"})
        found = (await http.post("/access", json={"urls": [slow]})).json()["result"]

    assert (late.status_code, late.json()["error"]) == (503, "UpstreamUnavailable")
    assert late.json()["detail"].startswith("0 of 1 pages were read within 0.2 s")
    assert "The whole page." in json.dumps(found)


async def test_one_in_a_hurry_takes_no_answer_away_from_one_who_waits(serve: Serve, toy: ToyServer) -> None:
    toy.says("/serper", Answer(delay_seconds=NEVER), Answer(SPOKEN["serper"]))
    body = {"queries": ["capital of Italy"]}

    async with serve("serper", provider_seconds=20.0) as transport, http_of(transport) as http:
        hurried = asyncio.create_task(http.post("/v1/search", json=body, headers={"X-Request-Timeout": "0.5"}))
        await toy.until_asked("/serper")
        waiting = await http.post("/v1/search", json=body, headers={"X-Request-Timeout": "20"})

        await hurried

    assert (waiting.status_code, len(waiting.json()["results"][0])) == (200, 2)


async def test_a_damaged_cassette_names_the_file(serve: Serve, tmp_path: Path) -> None:
    tape = {"cassette": tmp_path / "cassette", "cassette_mode": "record"}
    async with serve("serper", **tape) as transport, http_of(transport) as http:
        await http.post("/v1/search", json={"queries": ["capital of Italy"]})
        (entry,) = (tmp_path / "cassette" / "hits").rglob("*.json")
        entry.write_text('{"asked": {}}')
        answer = await http.post("/v1/search", json={"queries": ["capital of Italy"]})

    assert (answer.status_code, answer.json()["error"]) == (500, "SearcherError")
    assert str(entry) in answer.json()["detail"]


@pytest.mark.parametrize(
    "bad",
    [
        Answer({}, status=429, headers={"Retry-After": "3600"}),
        Answer({}, status=402),
        Answer(HTML_ERROR, status=500),
        Answer(HTML_ERROR, status=503, headers={"Retry-After": "3600"}),
        Answer(HTML_ERROR),
        Answer(SPOKEN["serper"], delay_seconds=NEVER),
        Answer(SPOKEN["serper"], cut_after_bytes=40),
        Answer(b'{"organic": [{"title": "Rome", "li', headers={"Content-Type": "application/json"}),
        Answer(b"[" * 200_000, headers={"Content-Type": "application/json"}),
        Answer({**SPOKEN["serper"], "organic": None}),
        Answer(hang_up=True),
    ],
    ids=["429", "402", "500", "503", "html", "slow", "cut", "truncated", "nested", "null", "hang-up"],
)
async def test_an_outage_is_the_next_providers_turn_and_never_an_empty_result(
    serve: Serve, toy: ToyServer, bad: Answer
) -> None:
    toy.says("/serper", bad)

    async with serve("serper", "brave") as transport, client_of(transport) as client:
        assert len((await client.search(["capital of Italy"], k=3))[0]) == 2

    async with serve("serper") as transport, client_of(transport) as client, http_of(transport) as http:
        with pytest.raises(UpstreamUnavailable, match="no search provider answered 'capital of Italy': serper: "):
            await client.search(["capital of Italy"], k=3)
        for route, body in (("/queries", {"queries": ["x"]}), ("/retrieve", {"queries": ["x"]})):
            refused = await http.post(route, json=body)
            assert (refused.status_code, refused.json()["error"]) == (503, "UpstreamUnavailable")
            assert int(refused.headers["Retry-After"]) >= 1


async def test_a_short_wait_that_is_asked_for_is_waited(serve: Serve, toy: ToyServer) -> None:
    toy.says("/serper", Answer({}, status=429, headers={"Retry-After": "1"}), Answer(SPOKEN["serper"]))

    async with serve("serper") as transport, client_of(transport) as client:
        assert len((await client.search(["capital of Italy"], k=3))[0]) == 2

    assert toy.num_asked == {"/serper": 2}


async def test_without_credit_one_is_told_to_come_back_when_the_provider_is_asked_again(
    serve: Serve, toy: ToyServer
) -> None:
    toy.says("/serper", Answer({}, status=402))

    async with serve("serper") as transport, http_of(transport) as http:
        refused = [await http.post("/retrieve", json={"queries": [query]}) for query in ("a", "b")]

    assert [answer.status_code for answer in refused] == [503, 503]
    assert [int(answer.headers["Retry-After"]) > 250 for answer in refused] == [True, True]
    assert toy.num_asked == {"/serper": 1}


async def test_a_spent_budget_is_an_error_that_names_it(serve: Serve, toy: ToyServer) -> None:
    async with serve("serper", budget_usd=0.002) as transport, http_of(transport) as http:
        answers = [await http.post("/v1/search", json={"queries": [f"q{n}"]}) for n in range(3)]
        metrics = (await http.get("/metrics")).text

    assert [answer.status_code for answer in answers] == [200, 200, 503]
    assert answers[2].json() == {
        "error": "BudgetSpent",
        "detail": "RETRIEVER_WEB_BUDGET_USD: 0.0020 of 0.0020 USD are spent and a request to serper costs 0.001; "
        "raise the budget to go on",
    }
    assert toy.num_asked == {"/serper": 2}
    assert "searcher_retriever_web_spent_usd 0.002" in metrics


async def test_what_is_free_goes_on_when_the_money_is_spent(serve: Serve, toy: ToyServer) -> None:
    async with serve("serper", "searxng", budget_usd=0.001) as transport, client_of(transport) as client:
        for query in ("a", "b", "c"):
            assert len((await client.search([query], k=3))[0]) == 2

    assert toy.num_asked == {"/serper": 1, "/searxng": 2}


async def test_samples_of_a_group_that_ask_the_same_are_one_request(serve: Serve, toy: ToyServer) -> None:
    async with serve("serper") as transport, client_of(transport) as client:
        await client.search(["capital of Italy"] * 16, k=3)

    assert toy.num_asked == {"/serper": 1}


async def test_a_recorded_run_is_replayed_byte_for_byte_without_network_key_or_money(
    serve: Serve, toy: ToyServer, keys_dir: Path, tmp_path: Path
) -> None:
    pages = [
        {"title": "Rome", "url": toy.says("/rome", Answer(b"<html>no main text</html>")), "content": "It is Rome."}
    ]
    toy.says("/tavily", Answer({"query": "x", "results": pages}))
    toy.says("/v1/chat/completions", Answer({"choices": [{"message": {"content": SUMMARY}}]}))
    style = {"text": "summary", "summariser_model": "toy-1", "cassette": tmp_path / "cassette"}
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/v1/search", {"queries": ["capital of Italy", "東京"], "k": 3}),
        ("/queries", {"queries": ["capital of Italy"], "k": 3}),
        ("/retrieve", {"queries": ["capital of Italy"], "topk": 3, "return_scores": True}),
    ]

    recording = serve("tavily", **style, cassette_mode="record", summariser_url=toy.url("/v1"))
    async with recording as transport, http_of(transport) as http:
        recorded = [(await http.post(route, json=body)).content for route, body in requests]
    asked = len(toy.received)
    assert SUMMARY.encode() in recorded[0]

    replaying = RetrieverSettings(backend="web", web=WebSettings(**style, cassette_mode="replay"))
    app = create_app(replaying)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with http_of(transport) as http, client_of(transport) as client:
            assert [(await http.post(route, json=body)).content for route, body in requests] == recorded
            with pytest.raises(NotFound, match="query 'capital of Spain' is not in the cassette"):
                await client.search(["capital of Spain"], k=3)
    assert len(toy.received) == asked

    kept = [path.read_text() for path in (tmp_path / "cassette").rglob("*") if path.is_file()]
    assert len(kept) > 4
    assert not [text for text in kept if KEY in text]


async def test_the_budget_is_the_cassettes_and_outlives_a_restart(serve: Serve, tmp_path: Path) -> None:
    tape = {"cassette": tmp_path / "cassette", "cassette_mode": "record", "budget_usd": 0.001}
    async with serve("serper", **tape) as transport, client_of(transport) as client:
        first = await client.search(["a"], k=3)

    async with serve("serper", **tape) as transport, client_of(transport) as client:
        assert await client.search(["a"], k=3) == first  # played
        with pytest.raises(UpstreamUnavailable, match="RETRIEVER_WEB_BUDGET_USD"):
            await client.search(["b"], k=3)


async def test_a_key_is_in_no_answer_log_or_metric(
    serve: Serve, toy: ToyServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    for name in SPOKEN:
        async with serve(name) as transport, http_of(transport) as http:
            said.append((await http.post("/v1/search", json={"queries": ["x"]})).text)
            for bad in (Answer({}, status=401), Answer(HTML_ERROR)):
                toy.says(f"/{name}", bad)
                said.append((await http.post("/v1/search", json={"queries": ["y"]})).text)
            said.append((await http.get("/metrics")).text)

    assert KEY not in "".join([*said, caplog.text, *capfd.readouterr()])
    assert len([received for received in toy.received if KEY in f"{received}"]) >= len(SPOKEN)
