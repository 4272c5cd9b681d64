"""An encoder behind HTTP, over a real socket: an index is built with it, served with it, and outlives its outage."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import stamina
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr, ValidationError
from starlette.responses import JSONResponse

from searcher.contracts.errors import UpstreamUnavailable
from services.retriever.building.build import build_index
from services.retriever.encoders.known import EncoderChoice
from services.retriever.encoders.remote import Server
from services.retriever.serving.library import Library
from services.retriever.settings import RetrieverSettings

PASSAGES = '{"id": "1", "text": "aaa"}\n{"id": "2", "text": "bbb"}\n'


def letters_app(key: str | None = None) -> FastAPI:
    """OpenAI's embeddings: a text's vector counts its a's and its b's, in the first two of 384 dimensions."""
    app = FastAPI()

    @app.post("/v1/embeddings")
    def embeddings(body: dict[str, Any]) -> JSONResponse:
        rows = [
            {"index": n, "embedding": [text.count("a") + 0.1, text.count("b") + 0.1, *[0.0] * 382]}
            for n, text in enumerate(body["input"])
        ]
        return JSONResponse({"object": "list", "model": body["model"], "data": rows})

    @app.middleware("http")
    async def authorise(request: Any, call_next: Any) -> Any:
        if key is not None and request.headers.get("Authorization") != f"Bearer {key}":
            return JSONResponse({"error": "unauthorised"}, status_code=401)
        return await call_next(request)

    return app


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join()


def built(folder: Path, url: str) -> Path:
    (folder / "corpus.jsonl").write_text(PASSAGES)
    choice = EncoderChoice("e5-small-v2", server=Server(url=url, attempts=2, timeout_seconds=5.0))
    build_index(folder / "corpus.jsonl", folder / "index", kind="flat", encoder=choice)
    return folder / "index"


def test_an_index_is_built_and_searched_through_a_server(tmp_path: Path) -> None:
    with served(letters_app()) as url:
        corpus = Library(num_threads=1).open(built(tmp_path, url), "c")

        rows, _ = corpus.index.search(["ab b", "aa"], 1)

    assert rows.tolist() == [[1], [0]]  # "query: " holds neither letter, "passage: " two a's


def test_a_server_that_is_away_is_an_outage_and_another_may_take_its_place(tmp_path: Path) -> None:
    with served(letters_app()) as url:
        index = built(tmp_path, url)

    with stamina.set_testing(True, attempts=2), pytest.raises(UpstreamUnavailable, match="encoder at http://127"):
        Library(num_threads=1).open(index, "c").index.search(["a"], 1)
    with served(letters_app(key="sesame")) as url:
        library = Library(num_threads=1, encoder_url=url, encoder_key=SecretStr("sesame"))
        rows, _ = library.open(index, "c").index.search(["a"], 1)

    assert rows.tolist() == [[0]]


def test_the_servers_key_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sesame\n")

    settings = RetrieverSettings(index_dir=tmp_path, encoder_key_file=tmp_path / "key")

    assert settings.encoder_key == SecretStr("sesame")


@pytest.mark.parametrize("content", [None, " \n"])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content)

    with pytest.raises((ValidationError, ValueError), match="RETRIEVER_ENCODER_KEY_FILE"):
        _ = RetrieverSettings(index_dir=tmp_path, encoder_key_file=tmp_path / "key").encoder_key
