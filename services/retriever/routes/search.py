"""Our own routes, `/v1/…`: strict, and documented by their contracts. Those of other projects are in `dropin`."""

from collections.abc import Callable, Sequence
from pathlib import Path

from fastapi import Request
from pydantic import Field, ValidationError

from searcher.contracts.base import Contract, Name
from searcher.contracts.errors import InvalidInput
from searcher.contracts.search import CorpusInfo, SearchRequest, SearchResponse
from searcher.servicekit.app import require_admin
from searcher.servicekit.call import Call
from searcher.servicekit.frame import Framed
from searcher.servicekit.posts import add_post, invalid_body
from services.retriever.backend import DEFAULT, Ask, Backend, Found
from services.retriever.serving.shelf import Shelf
from services.retriever.settings import RetrieverSettings


class IndexRequest(Contract):
    """Serve another index in place of one that is served now."""

    corpus: Name = DEFAULT
    folder: str | None = Field(default=None, min_length=1, max_length=4_096)
    """Of the new index, on this machine; relative paths begin at RETRIEVER_INDEX_DIR. None: look again where the corpus
    has its place, as after its `current` link was changed."""


class IndexResponse(Contract):
    corpus: str
    index: str
    """Of the index that is served now."""
    before: str
    num_passages: int


def add_routes(app: Framed, backend: Callable[[], Backend], *, settings: RetrieverSettings) -> None:
    async def search(call: Call) -> bytes:
        body = _parse(call.body)
        _refuse_blank(body.queries)
        deadline_seconds = call.deadline_seconds(settings.deadline_seconds)
        found = await backend().search(Ask(body.queries, [body.k] * len(body.queries), body.corpus, deadline_seconds))
        return _search_response(body.corpus, found)

    add_post(
        app,
        "/v1/search",
        search,
        body=SearchRequest,
        response=SearchResponse,
        summary="Passages per query, best first",
    )

    @app.get("/v1/corpora", summary="What can be asked")
    async def corpora() -> list[CorpusInfo]:
        return backend().corpora()

    @app.post("/v1/index", tags=["admin"], summary="Serve another index, without a failed request")
    async def index(body: IndexRequest, request: Request) -> IndexResponse:
        require_admin(request, settings)
        shelf = backend()
        if not isinstance(shelf, Shelf):
            raise InvalidInput(f"RETRIEVER_BACKEND is {settings.backend!r}: there is no index to replace")
        old, new = await shelf.replace(body.corpus, None if body.folder is None else Path(body.folder))
        return IndexResponse(
            corpus=body.corpus, index=new.sha256, before=old.sha256, num_passages=new.manifest.num_passages
        )


def _parse(body: bytes) -> SearchRequest:
    try:
        return SearchRequest.model_validate_json(body)
    except ValidationError as error:
        raise invalid_body(error) from None


def _refuse_blank(queries: Sequence[str]) -> None:
    for position, query in enumerate(queries):
        if not query.strip():
            raise InvalidInput(f"body.queries.{position}: {query!r} holds no words; leave it out")


def _search_response(corpus: str, found: Found) -> bytes:
    """SearchResponse as JSON. The passages are JSON already, and names need no escapes."""
    lists = b",".join(b"[" + b",".join(passages) + b"]" for passages in found.passages_Q)
    return f'{{"corpus":"{corpus}","index":"{found.index}","results":['.encode() + lists + b"]}"
