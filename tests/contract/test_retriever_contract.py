"""The real client against the real service. Other projects' clients are in test_retriever_peers.py."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from searcher.clients.retriever import RetrieverClient
from searcher.contracts.errors import InvalidInput, NotFound, Overloaded, TooLarge, Unauthorized, UpstreamUnavailable
from searcher.servicekit.settings import SharedSettings
from services.retriever import app as app_module
from services.retriever.app import create_app
from services.retriever.backend import Ask, Found
from services.retriever.building.build import build_index
from services.retriever.index.manifest import manifest_sha256
from services.retriever.serving.shelf import Shelf
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

    assert [passage.model_dump(exclude={"score", "url"}) for passage in rome[:1]] == [PASSAGES[0]]
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
    ("body", "field"),
    [
        ({}, "body.queries: Field required"),
        ({"queries": []}, "body.queries: "),
        ({"queries": [""]}, "body.queries.0: "),
        ({"queries": ["x", 7]}, "body.queries.1: "),
        ({"queries": ["x"] * 513}, "body.queries: "),
        ({"queries": ["x" * 8_193]}, "body.queries.0: "),
        ({"queries": ["x"], "k": 0}, "body.k: "),
        ({"queries": ["x"], "k": 101}, "body.k: "),
        ({"queries": ["x"], "k": "three"}, "body.k: "),
        ({"queries": ["x"], "k": "3"}, "body.k: "),
        ({"queries": ["x"], "k": 3.0}, "body.k: "),
        ({"queries": ["x"], "k": True}, "body.k: "),
        ({"queries": ["x"], "kk": 3}, "body.kk: "),
        ({"queries": ["x"], "corpus": "../etc"}, "body.corpus: "),
        ({"queries": "x"}, "body.queries: "),
        ({"queries": ["\ud83d"]}, "body: "),
        ("x", "body: "),
    ],
)
async def test_a_malformed_request_is_refused_by_its_field(http: httpx.AsyncClient, body: Any, field: str) -> None:
    response = await http.post("/v1/search", content=json.dumps(body))

    assert (response.status_code, response.json()["error"]) == (422, "InvalidInput")
    assert response.json()["detail"].startswith(field)
    assert "; " not in response.json()["detail"]  # one fault, one line


async def test_a_k_above_the_corpus_gives_every_passage_once(client: RetrieverClient) -> None:
    (found,) = await client.search(["rome orwell"], k=100)

    assert sorted(passage.id for passage in found) == ["11", "12", "x-13"]


async def test_what_can_be_asked_is_listed(http: httpx.AsyncClient, index_dir: Path) -> None:
    facts = {"kind": "bm25", "num_passages": 3, "index": manifest_sha256(index_dir / "world")}
    facts |= {"encoder": None, "recall": None}  # of indexes of vectors

    listed = (await http.get("/v1/corpora")).json()

    assert listed == [{"name": "default", **facts}, {"name": "world", **facts}]


async def test_a_served_retriever_is_ready_and_measured(client: RetrieverClient, http: httpx.AsyncClient) -> None:
    await client.search(["Rome"], k=1)

    assert await client.is_ready()
    metrics = (await http.get("/metrics")).text
    assert 'searcher_retriever_index_passages{corpus="world",kind="bm25"} 3.0' in metrics
    assert 'searcher_retriever_stage_seconds_count{stage="search"}' in metrics


async def test_an_admin_replaces_an_index_while_it_is_served(tmp_path: Path, index_dir: Path) -> None:
    (tmp_path / "key").write_text("user")
    (tmp_path / "admin").write_text("admin")
    newer = tmp_path / "newer.jsonl"
    newer.write_text(json.dumps({"id": "n", "title": "Rome", "text": "Another Rome."}) + "\n")
    build_index(newer, tmp_path / "newer", kind="bm25")
    shared = SharedSettings(api_key_file=tmp_path / "key", admin_key_file=tmp_path / "admin")

    async with serving(RetrieverSettings(index_dir=index_dir, shared=shared)) as transport:
        async with httpx.AsyncClient(transport=transport, base_url="http://retriever") as http:
            body = {"corpus": "world", "folder": str(tmp_path / "newer")}
            by_user = await http.post("/v1/index", json=body, headers={"Authorization": "Bearer user"})
            unsound = await http.post(
                "/v1/index", json=body | {"folder": "nowhere"}, headers={"Authorization": "Bearer admin"}
            )
            by_admin = await http.post("/v1/index", json=body, headers={"Authorization": "Bearer admin"})
        async with RetrieverClient("http://retriever", api_key="user", transport=transport) as client:
            ((passage,),) = await client.search(["Rome"], k=3)

    assert (by_user.status_code, unsound.status_code, by_admin.status_code) == (401, 422, 200)
    assert "nowhere/manifest.json: no such file" in unsound.json()["detail"]
    assert by_admin.json() == {
        "corpus": "world",
        "index": manifest_sha256(tmp_path / "newer"),
        "before": manifest_sha256(index_dir / "world"),
        "num_passages": 1,
    }
    assert passage.id == "n"


async def test_without_an_admin_token_nobody_replaces_an_index(http: httpx.AsyncClient) -> None:
    refused = await http.post("/v1/index", json={})

    assert refused.status_code == 401
    assert "SEARCHER_ADMIN_KEY_FILE is not set" in refused.json()["detail"]


async def test_a_body_over_the_limit_is_refused(index_dir: Path) -> None:
    async with (
        serving(RetrieverSettings(index_dir=index_dir, max_body_bytes=1_024)) as transport,
        RetrieverClient("http://retriever", attempts=1, transport=transport) as client,
    ):
        with pytest.raises(TooLarge, match="more than 1024 bytes"):
            await client.search(["x" * 2_000], k=1)


async def test_every_route_is_documented(http: httpx.AsyncClient) -> None:
    paths = (await http.get("/openapi.json")).json()["paths"]

    search = paths["/v1/search"]["post"]
    assert search["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/SearchRequest")
    assert search["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/SearchResponse")
    assert {"/queries", "/retrieve", "/access", "/search", "/batch_search", "/health", "/v1/index"} <= set(paths)


async def test_without_the_token_nothing_is_answered(tmp_path: Path, index_dir: Path) -> None:
    (tmp_path / "key").write_text("secret")
    settings = RetrieverSettings(index_dir=index_dir, shared=SharedSettings(api_key_file=tmp_path / "key"))

    async with serving(settings) as transport:
        async with RetrieverClient("http://retriever", transport=transport) as stranger:
            with pytest.raises(Unauthorized):
                await stranger.search(["Rome"], k=1)
        async with RetrieverClient("http://retriever", api_key="secret", transport=transport) as friend:
            assert await friend.search(["Rome"], k=1)


class BusyShelf(Shelf):
    """Says what an engine says that is hopelessly late."""

    async def search(self, ask: Ask) -> Found:
        raise Overloaded("99 queries wait, about 7.2 s", retry_after_seconds=7.2)


async def test_an_overloaded_retriever_is_an_outage_with_a_time_to_come_back(
    index_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "Shelf", BusyShelf)
    async with (
        serving(RetrieverSettings(index_dir=index_dir)) as transport,
        httpx.AsyncClient(transport=transport, base_url="http://retriever") as http,
        RetrieverClient("http://retriever", attempts=1, transport=transport) as client,
    ):
        for path, body in (
            ("/v1/search", {"queries": ["Rome"]}),
            ("/queries", {"queries": ["Rome"]}),
            ("/retrieve", {"query": "Rome"}),
            ("/search", {"query_list": ["Rome"]}),
            ("/batch_search", {"query": ["Rome"]}),
        ):
            response = await http.post(path, json=body)
            assert (response.status_code, response.json()["error"]) == (503, "Overloaded"), path
            assert response.headers["Retry-After"] == "8", path
        with pytest.raises(UpstreamUnavailable):
            await client.search(["Rome"], k=1)


class RecordingShelf(Shelf):
    asked: list[Ask]

    async def search(self, ask: Ask) -> Found:
        self.asked.append(ask)
        return await super().search(ask)


async def test_a_client_says_how_long_it_waits(index_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "Shelf", RecordingShelf)
    monkeypatch.setattr(RecordingShelf, "asked", [], raising=False)
    async with (
        serving(RetrieverSettings(index_dir=index_dir, deadline_seconds=20)) as transport,
        httpx.AsyncClient(transport=transport, base_url="http://retriever") as http,
        RetrieverClient("http://retriever", timeout_seconds=7.5, transport=transport) as client,
    ):
        await client.search(["Rome"], k=1)
        await http.post("/v1/search", json={"queries": ["Rome"]})
        await http.post("/queries", json={"queries": ["Rome"]})
        await http.post("/queries", json={"queries": ["Rome"]}, headers={"X-Request-Timeout": "5"})
        refused = await http.post("/v1/search", json={"queries": ["Rome"]}, headers={"X-Request-Timeout": "soon"})

    assert [(ask.deadline_seconds, ask.patient) for ask in RecordingShelf.asked] == [
        (7.5, False),
        (20.0, False),
        (20.0, True),
        (5.0, False),
    ]
    assert refused.status_code == 422
    assert "header.X-Request-Timeout: 'soon'" in refused.json()["detail"]


async def test_a_service_does_not_start_on_a_damaged_index(index_dir: Path) -> None:
    (index_dir / "world" / "offsets.npy").write_bytes(b"")

    with pytest.raises(InvalidInput, match=r"offsets\.npy: 0 bytes"):
        async with serving(RetrieverSettings(index_dir=index_dir)):
            pass
