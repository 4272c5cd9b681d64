"""Online search as it is run: recorded by one process, replayed by another with the web and the keys gone."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.web_toys import Answer, toy_server

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

SENTENCE = "Rome is the capital of Italy, and it has been inhabited for more than twenty-eight centuries."
PAGE = f"<html><body><nav>Home</nav><article><p>{SENTENCE}</p><p>{SENTENCE}</p></article></body></html>".encode()


@asynccontextmanager
async def serving(**settings: object) -> AsyncIterator[httpx.AsyncClient]:
    """Its own process until SIGTERM, which must end it well."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = os.environ | {"RETRIEVER_BACKEND": "web", "RETRIEVER_PORT": str(port)}
    environment |= {f"RETRIEVER_WEB_{name.upper()}": str(value) for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.retriever", env=environment)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60.0) as http:
        try:
            await _ready(http, process)
            yield http
        finally:
            process.send_signal(signal.SIGTERM)
            code = await process.wait()
    assert code == 0


async def _ready(http: httpx.AsyncClient, process: asyncio.subprocess.Process) -> None:
    while process.returncode is None:
        try:
            if (await http.get("/readyz")).status_code == 200:
                return
        except httpx.TransportError:
            await asyncio.sleep(0.1)
    raise AssertionError(f"the retriever ended with {process.returncode}")


async def test_what_one_process_recorded_another_replays_byte_for_byte(tmp_path: Path) -> None:
    keys_dir, cassette = tmp_path / "keys", tmp_path / "cassette"
    keys_dir.mkdir()
    (keys_dir / "serper").write_text("s3cret")
    body = {"queries": ["capital of Italy"], "k": 2}
    async with toy_server() as toy:
        page = toy.says("/rome", Answer(PAGE))
        inside = {"title": "Inside", "link": "http://169.254.169.254/latest/", "snippet": "What the engine quotes."}
        toy.says("/search", Answer({"organic": [{"title": "Rome", "link": page, "snippet": "Rome"}, inside]}))
        async with serving(
            providers="serper",
            keys_dir=keys_dir,
            budget_usd=0.01,
            urls=f'{{"serper": "{toy.url("/search")}"}}',
            text="page",
            allowed_addresses=f"127.0.0.1:{toy.port}",
            cassette=cassette,
            cassette_mode="record",
        ) as http:
            recorded = [(await http.post(path, json=body)).content for path in ("/v1/search", "/queries")]
        assert toy.num_asked == {"/search": 1, "/rome": 1}

    async with serving(text="page", cassette=cassette, cassette_mode="replay") as http:
        replayed = [(await http.post(path, json=body)).content for path in ("/v1/search", "/queries")]
        unknown = await http.post("/v1/search", json={"queries": ["capital of Spain"]})

    assert replayed == recorded
    assert SENTENCE.encode() in recorded[0]
    assert b"What the engine quotes." in recorded[0]
    assert (unknown.status_code, "capital of Spain" in unknown.json()["detail"]) == (404, True)
    assert (cassette / "spent").read_text() == "00000000000000001000 micro-USD\n"
