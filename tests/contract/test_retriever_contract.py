"""The real client against the real service, and the published clients of others against its drop-in routes."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from searcher.clients.retriever import RetrieverClient
from searcher.contracts.errors import InvalidInput, NotFound, TooLarge, Unauthorized, UpstreamUnavailable
from searcher.servicekit.settings import SharedSettings
from services.retriever.app import create_app
from services.retriever.build_index import build_index
from services.retriever.manifest import manifest_sha256
from services.retriever.settings import RetrieverSettings

pytestmark = pytest.mark.anyio

PASSAGES = (
    {"id": "11", "title": "Rome", "text": "Rome is the capital\nof Italy."},
    {"id": "12", "title": '1984 "film"', "text": "A film after a book by Orwell."},
    {"id": "x-13", "title": "", "text": "Orwell wrote a book. 東京"},
)


@pytest.fixture
def index_dir(tmp_path: Path) -> Path:
    source = tmp_path / "world.jsonl"
    source.write_text("".join(json.dumps(passage) + "\n" for passage in PASSAGES))
    build_index(source, tmp_path / "indexes" / "world", kind="bm25")
    return tmp_path / "indexes"


@asynccontextmanager
async def serving(settings: RetrieverSettings) -> AsyncIterator[httpx.ASGITransport]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield httpx.ASGITransport(app)


@pytest.fixture
async def transport(index_dir: Path) -> AsyncIterator[httpx.ASGITransport]:
    async with serving(RetrieverSettings(index_dir=index_dir)) as transport:
        yield transport


@pytest.fixture
async def client(transport: httpx.ASGITransport) -> AsyncIterator[RetrieverClient]:
    async with RetrieverClient("http://retriever", transport=transport) as client:
        yield client


@pytest.fixture
async def http(transport: httpx.ASGITransport) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=transport, base_url="http://retriever") as http:
        yield http


async def test_passages_come_back_per_query_best_first(client: RetrieverClient) -> None:
    rome, orwell = await client.search(["capital of Italy?", "book by Orwell"], k=3)

    assert [passage.model_dump(exclude={"score"}) for passage in rome[:1]] == [PASSAGES[0]]
    assert [passage.id for passage in orwell] == ["12", "x-13"]
    assert orwell[0].score > orwell[1].score > 0


async def test_nothing_found_is_an_empty_list_and_no_error(client: RetrieverClient) -> None:
    assert await client.search(["zyzzyva"], k=3) == ((),)


async def test_a_response_names_the_index_it_came_from(http: httpx.AsyncClient, index_dir: Path) -> None:
    body = (await http.post("/v1/search", json={"queries": ["Rome"], "corpus": "world"})).json()

    assert (body["corpus"], body["index"]) == ("world", manifest_sha256(index_dir / "world"))


async def test_the_single_corpus_is_also_the_default(client: RetrieverClient) -> None:
    assert await client.search(["Rome"], k=1) == await client.search(["Rome"], k=1, corpus="world")


async def test_an_unknown_corpus_is_refused_with_the_known_ones(client: RetrieverClient) -> None:
    with pytest.raises(NotFound, match="'moon' is not one of default, world"):
        await client.search(["Rome"], k=1, corpus="moon")


@pytest.mark.parametrize("query", [" ", "\t\n", "\u2003"])
async def test_a_blank_query_is_refused_by_its_position(client: RetrieverClient, query: str) -> None:
    with pytest.raises(InvalidInput, match=r"body\.queries\.1: .* holds no words"):
        await client.search(["Rome", query], k=1)


@pytest.mark.parametrize(
    "body",
    [
        {"queries": []},
        {"queries": [""]},
        {"queries": ["x"] * 513},
        {"queries": ["x" * 8_193]},
        {"queries": ["x"], "k": 0},
        {"queries": ["x"], "k": 101},
        {"queries": ["x"], "kk": 3},
        {"queries": "x"},
        {"queries": ["\ud83d"]},
    ],
)
async def test_a_malformed_request_is_refused_as_invalid_input(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    response = await http.post("/v1/search", content=json.dumps(body), headers={"Content-Type": "application/json"})

    assert (response.status_code, response.json()["error"]) == (422, "InvalidInput")


async def test_what_can_be_asked_is_listed(http: httpx.AsyncClient, index_dir: Path) -> None:
    facts = {"kind": "bm25", "num_passages": 3, "index": manifest_sha256(index_dir / "world")}

    listed = (await http.get("/v1/corpora")).json()

    assert listed == [{"name": "default", **facts}, {"name": "world", **facts}]


async def test_a_served_retriever_is_ready_and_measured(client: RetrieverClient, http: httpx.AsyncClient) -> None:
    await client.search(["Rome"], k=1)

    assert await client.is_ready()
    metrics = (await http.get("/metrics")).text
    assert 'searcher_retriever_index_passages{corpus="world",kind="bm25"} 3.0' in metrics
    assert 'searcher_retriever_stage_seconds_count{stage="search"}' in metrics


async def test_without_the_token_nothing_is_answered(tmp_path: Path, index_dir: Path) -> None:
    (tmp_path / "key").write_text("secret")
    settings = RetrieverSettings(index_dir=index_dir, shared=SharedSettings(api_key_file=tmp_path / "key"))

    async with serving(settings) as transport:
        async with RetrieverClient("http://retriever", transport=transport) as stranger:
            with pytest.raises(Unauthorized):
                await stranger.search(["Rome"], k=1)
        async with RetrieverClient("http://retriever", api_key="secret", transport=transport) as friend:
            assert await friend.search(["Rome"], k=1)


async def test_an_overloaded_retriever_is_an_outage_with_a_time_to_come_back(index_dir: Path) -> None:
    async with (
        serving(RetrieverSettings(index_dir=index_dir, queue_seconds=1e-12)) as transport,
        httpx.AsyncClient(transport=transport, base_url="http://retriever") as http,
        RetrieverClient("http://retriever", attempts=1, transport=transport) as client,
    ):
        response = await http.post("/v1/search", json={"queries": ["Rome"]})
        with pytest.raises(UpstreamUnavailable):
            await client.search(["Rome"], k=1)

    assert (response.status_code, response.json()["error"]) == (503, "Overloaded")
    assert int(response.headers["Retry-After"]) >= 1


async def test_a_service_does_not_start_on_a_damaged_index(index_dir: Path) -> None:
    (index_dir / "world" / "offsets.npy").write_bytes(b"")

    with pytest.raises(InvalidInput, match=r"offsets\.npy: 0 bytes"):
        async with serving(RetrieverSettings(index_dir=index_dir)):
            pass


# ---------------------------------------------------------------------------------------------------------------------
# Drop-in routes. The functions are the clients' own, cut down to what they do with a response.


def as_r1_searcher_reads_it(body: dict[str, Any]) -> list[str]:
    """The document block of its training loop, per query."""
    blocks = []
    for answers in body["answers"]:
        lines = ["(" + str(j + 1) + ")" + re.sub(r"^\d+\s+", "", doc) + "\n" for j, doc in enumerate(answers)]
        blocks.append("".join(lines) or "None")
    return blocks


def as_search_r1_reads_it(body: dict[str, Any]) -> list[str]:
    """`_passages2string` of its generation loop, which asks with scores."""
    texts = []
    for result in body["result"]:
        text = ""
        for number, item in enumerate(result):
            content = item["document"]["contents"]
            title = content.split("\n")[0]
            text += f"Doc {number + 1}(Title: {title}) " + "\n".join(content.split("\n")[1:]) + "\n"
        texts.append(text)
    return texts


async def test_r1_searchers_client_reads_our_answers(http: httpx.AsyncClient) -> None:
    body = (await http.post("/queries", json={"queries": ["Rome", "book Orwell", "zyzzyva"], "k": 2})).json()

    assert body["queries"] == ["Rome", "book Orwell", "zyzzyva"]
    assert body["answers"][0] == ["11\tTitle: Rome. Rome is the capital of Italy."]
    assert as_r1_searcher_reads_it(body) == [
        "(1)Title: Rome. Rome is the capital of Italy.\n",
        '(1)Orwell wrote a book. 東京\n(2)Title: 1984 "film". A film after a book by Orwell.\n',
        "None",
    ]


async def test_search_r1s_client_reads_our_answers(http: httpx.AsyncClient) -> None:
    payload = {"queries": ["Rome", "film"], "topk": 3, "return_scores": True}

    body = (await http.post("/retrieve", json=payload)).json()

    assert as_search_r1_reads_it(body) == [
        'Doc 1(Title: "Rome") Rome is the capital\nof Italy.\n',
        'Doc 1(Title: "1984 "film"") A film after a book by Orwell.\n',
    ]
    assert body["result"][0][0]["score"] > 0


@pytest.mark.parametrize(
    "payload",
    [
        {"queries": ["book"], "topk": 1},
        {"query": "book", "topk": 1},
        {"query_list": ["book"], "k": 1},
        {"queries": ["book"], "top_n": 1, "rerank": True},
    ],
)
async def test_every_clients_spelling_of_a_query_is_understood(
    http: httpx.AsyncClient, payload: dict[str, Any]
) -> None:
    body = (await http.post("/retrieve", json=payload)).json()

    assert body == {"result": [[{"id": "x-13", "contents": '""\nOrwell wrote a book. 東京'}]]}


async def test_a_blank_query_of_a_drop_in_client_finds_nothing(http: httpx.AsyncClient) -> None:
    body = (await http.post("/queries", json={"queries": ["", "Rome", " "]})).json()

    assert [len(answers) for answers in body["answers"]] == [0, 1, 0]


async def test_drop_in_clients_may_name_a_corpus_in_the_address(http: httpx.AsyncClient) -> None:
    known = await http.post("/retrieve?corpus=world", json={"query": "Rome"})
    unknown = await http.post("/queries?corpus=moon", json={"queries": ["Rome"]})

    assert (known.status_code, unknown.status_code) == (200, 404)


async def test_a_body_over_the_limit_is_refused(index_dir: Path) -> None:
    async with (
        serving(RetrieverSettings(index_dir=index_dir, max_body_bytes=1_024)) as transport,
        RetrieverClient("http://retriever", attempts=1, transport=transport) as client,
    ):
        with pytest.raises((TooLarge, InvalidInput)):
            await client.search(["x" * 2_000], k=1)
