"""What every service does alike: probes, tokens, errors, limits."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from searcher.contracts.errors import InvalidInput, NotReady, Overloaded
from searcher.contracts.search import SearchRequest
from searcher.servicekit.app import create_service
from searcher.servicekit.call import Call
from searcher.servicekit.posts import add_post
from searcher.servicekit.settings import ServiceSettings, SharedSettings

pytestmark = pytest.mark.anyio


class ToySettings(ServiceSettings):
    port: int = 8999


def toy_app(settings: ToySettings | None = None, *, ready: bool = True) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield

    async def is_ready(app: FastAPI) -> None:
        if not ready:
            raise NotReady("index is loading")

    app = create_service("toy", summary="", settings=settings or ToySettings(), lifespan=lifespan, is_ready=is_ready)

    @app.post("/v1/search")
    async def search(request: SearchRequest) -> dict[str, int]:
        return {"queries": len(request.queries)}

    async def answer(call: Call) -> bytes:
        return {b"fine": b"1"}[call.body]

    add_post(app, "/v1/direct", answer, body=SearchRequest, response=int, summary="Bytes in, bytes out")

    @app.get("/v1/fails/{how}")
    async def fails(how: str) -> None:
        raise {"invalid": InvalidInput("k: 0 is too small"), "full": Overloaded("busy", retry_after_seconds=2.5)}[how]

    return app


def client_of(app: FastAPI, **headers: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://toy", headers=headers)


async def test_a_service_that_is_not_ready_still_lives() -> None:
    async with client_of(toy_app(ready=False)) as client:
        alive, ready = await client.get("/healthz"), await client.get("/readyz")

    assert alive.status_code == 200
    assert ready.status_code == 503
    assert ready.json() == {"error": "NotReady", "detail": "index is loading"}


async def test_a_draining_service_says_it_is_not_ready() -> None:
    app = toy_app()
    app.state.draining = True

    async with client_of(app) as client:
        assert (await client.get("/readyz")).status_code == 503


async def test_bad_input_names_the_field_and_the_value() -> None:
    async with client_of(toy_app()) as client:
        answer = await client.post("/v1/search", json={"queries": [""], "k": 3})

    assert answer.status_code == 422
    assert answer.json()["error"] == "InvalidInput"
    assert "body.queries.0" in answer.json()["detail"]


async def test_a_body_that_is_not_json_is_a_clear_4xx() -> None:
    async with client_of(toy_app()) as client:
        answer = await client.post("/v1/search", content=b"{", headers={"Content-Type": "application/json"})

    assert answer.status_code == 422


async def test_overload_tells_when_to_come_back() -> None:
    async with client_of(toy_app()) as client:
        answer = await client.get("/v1/fails/full")

    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "3"


async def test_an_unknown_error_shows_no_internals() -> None:
    async with client_of(toy_app()) as client:
        answer = await client.get("/v1/fails/unheard-of")

    assert answer.status_code == 500
    assert answer.json()["error"] == "InternalError"
    assert "unheard" not in answer.text


async def test_after_an_unknown_error_nobody_asks_on_the_connection_that_is_being_closed() -> None:
    config = uvicorn.Config(toy_app(), host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        failed = await client.get("/v1/fails/unheard-of")
        after = await client.get("/healthz")
    server.should_exit = True
    await serving

    assert (failed.status_code, failed.headers["Connection"]) == (500, "close")
    assert after.status_code == 200


async def test_a_draining_service_asks_its_clients_to_connect_anew() -> None:
    app = toy_app()

    async with client_of(app) as client:
        before = await client.post("/v1/search", json={"queries": ["a"]})
        app.state.draining = True
        after = await client.post("/v1/search", json={"queries": ["a"]})

    assert "connection" not in before.headers
    assert (after.status_code, after.headers["connection"]) == (200, "close")


async def test_an_unknown_path_is_answered_in_our_form() -> None:
    async with client_of(toy_app()) as client:
        missing, wrong = await client.get("/v1/nothing"), await client.get("/v1/search")

    assert (missing.status_code, missing.json()["error"]) == (404, "NotFound")
    assert (wrong.status_code, wrong.json()["detail"]) == (405, "GET /v1/search: Method Not Allowed")


LARGE = b'{"queries": ["' + b"x" * 2_000 + b'"]}'


async def in_pieces() -> AsyncIterator[bytes]:
    """A body whose length is not announced."""
    for start in range(0, len(LARGE), 100):
        yield LARGE[start : start + 100]


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit_is_refused_in_our_form(announced: bool) -> None:
    async with client_of(toy_app(ToySettings(max_body_bytes=1024))) as client:
        content = LARGE if announced else in_pieces()
        answer = await client.post("/v1/search", content=content, headers={"Content-Type": "application/json"})

    assert answer.status_code == 413
    assert answer.json() == {"error": "TooLarge", "detail": "body: more than 1024 bytes; send less at once"}


async def test_everything_but_the_probes_needs_the_token(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    app = toy_app(ToySettings(shared=SharedSettings(api_key_file=key)))

    async with client_of(app) as stranger, client_of(app, Authorization="Bearer secret") as friend:
        assert (await stranger.get("/healthz")).status_code == 200
        assert (await stranger.get("/metrics")).status_code == 200
        assert (await stranger.post("/v1/search", json={"queries": ["a"]})).status_code == 401
        assert (await friend.post("/v1/search", json={"queries": ["a"]})).status_code == 200


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("Bearer secret", 200),
        ("bearer secret", 200),
        ("Bearer admin", 200),
        ("Bearer other", 401),
        ("Basic " + b64encode(b"any:secret").decode(), 200),
        ("Basic " + b64encode(b"secret:other").decode(), 401),
        ("Basic %%%", 401),
        ("secret", 401),
        ("", 401),
    ],
)
async def test_a_token_comes_as_bearer_or_as_the_password_of_an_address(
    tmp_path: Path, authorization: str, status: int
) -> None:
    for name in ("secret", "admin"):
        (tmp_path / name).write_text(name)
    shared = SharedSettings(api_key_file=tmp_path / "secret", admin_key_file=tmp_path / "admin")

    async with client_of(toy_app(ToySettings(shared=shared)), Authorization=authorization) as client:
        assert (await client.post("/v1/search", json={"queries": ["a"]})).status_code == status


def test_no_service_opens_to_the_network_without_a_token() -> None:
    with pytest.raises(ValidationError, match="SEARCHER_API_KEY_FILE"):
        ToySettings(host="0.0.0.0")


def test_an_empty_token_is_no_token(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("\n")

    with pytest.raises(ValueError, match="is empty"):
        toy_app(ToySettings(shared=SharedSettings(api_key_file=key)))


async def test_requests_are_counted_by_route_not_by_path() -> None:
    async with client_of(toy_app()) as client:
        await client.get("/v1/fails/full")
        metrics = (await client.get("/metrics")).text

    assert 'searcher_http_requests_total{code="503",method="GET",route="/v1/fails/{how}",service="toy"}' in metrics


async def test_a_direct_route_is_answered_counted_and_documented() -> None:
    app = toy_app()
    async with client_of(app) as client:
        answered = await client.post("/v1/direct", content=b"fine")
        metrics = (await client.get("/metrics")).text

    assert (answered.status_code, answered.content) == (200, b"1")
    assert answered.headers["content-type"] == "application/json"
    assert 'searcher_http_requests_total{code="200",method="POST",route="/v1/direct",service="toy"}' in metrics
    assert "/v1/direct" in app.openapi()["paths"]


async def test_an_unknown_error_of_a_direct_route_shows_no_internals_and_ends_the_connection() -> None:
    async with client_of(toy_app()) as client:
        failed = await client.post("/v1/direct", content=b"no such key")

    assert failed.status_code == 500
    assert failed.json() == {"error": "InternalError", "detail": "see the service's log"}
    assert failed.headers["connection"] == "close"


@pytest.mark.parametrize("announced", [True, False])
async def test_a_direct_route_needs_the_token_and_keeps_the_limit(announced: bool, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    shared = SharedSettings(api_key_file=tmp_path / "key")
    app = toy_app(ToySettings(shared=shared, max_body_bytes=1024))

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 1000

    async with client_of(app) as client:
        stranger = await client.post("/v1/direct", content=b"fine")
        too_large = await client.post(
            "/v1/direct",
            content=b"x" * 3000 if announced else pieces(),
            headers={"Authorization": "Bearer secret"},
        )

    assert stranger.status_code == 401
    assert too_large.status_code == 413
    assert "more than 1024 bytes" in too_large.json()["detail"]
