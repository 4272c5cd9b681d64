"""HTTP -> engine -> passages as JSON. Searching is left to `engine`, finding a passage's bytes to `corpus`.

`/v1/search` is ours. `/queries` and `/retrieve` speak the protocols of R1-Searcher's and Search-R1's servers, so that
trainers written for those can be pointed here as they are.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from searcher.contracts.base import Contract, Name
from searcher.contracts.errors import InvalidInput
from searcher.contracts.search import Passage, SearchRequest, SearchResponse
from searcher.servicekit.app import create_service
from services.retriever import metrics
from services.retriever.cache import Hits
from services.retriever.engine import Engine
from services.retriever.library import DEFAULT, Corpus, Library
from services.retriever.settings import RetrieverSettings

T = TypeVar("T")

CALLER_HUNG_UP = 499
"""nginx' status for it. Nobody reads it; it tells metrics apart from our own errors."""


class CorpusInfo(Contract):
    """One name under which `corpus` can be asked."""

    name: str
    kind: str
    num_passages: int
    index: str
    """The sha256 of the manifest, as in every search response."""


class _DropIn(BaseModel):
    """Requests of other projects' clients: unknown fields are their business, and lists may be longer than ours."""

    model_config = ConfigDict(frozen=True, extra="ignore")


_Queries = Annotated[
    tuple[Annotated[str, Field(max_length=8_192)], ...],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(min_length=1, max_length=4_096),
]
_NumResults = Annotated[int, BeforeValidator(lambda value: 3 if value is None else value), Field(ge=1, le=100)]


class QueriesRequest(_DropIn):
    queries: _Queries
    k: _NumResults = 3


class RetrieveRequest(_DropIn):
    queries: _Queries = Field(validation_alias=AliasChoices("queries", "query", "query_list"))
    topk: _NumResults = Field(default=3, validation_alias=AliasChoices("topk", "k", "top_n"))
    return_scores: bool = False


def create_app(settings: RetrieverSettings) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = Engine(
            Library(num_threads=settings.threads).open_all(settings.index_dir),
            max_batch=settings.max_batch,
            queue_seconds=settings.queue_seconds,
            cache_entries=settings.cache_entries,
        )
        engine.start()
        app.state.engine = engine
        yield
        await engine.close()

    async def is_ready(app: FastAPI) -> None:
        app.state.engine.check()

    app = create_service(
        "retriever", summary="Queries -> passages", settings=settings, lifespan=lifespan, is_ready=is_ready
    )
    _add_routes(app)
    return app


def _add_routes(app: FastAPI) -> None:
    def engine() -> Engine:
        found: Engine = app.state.engine
        return found

    @app.post("/v1/search", response_model=SearchResponse, summary="Passages per query, best first")
    async def search(body: SearchRequest, request: Request) -> Response:
        _refuse_blank(body.queries)
        corpus = engine().corpus(body.corpus)
        hits = await _while_connected(request, engine().search(body.queries, corpus=corpus, k=body.k))
        with metrics.STAGE_SECONDS.labels("fetch").time():
            return _json(_search_response(body.corpus, corpus, hits))

    @app.get("/v1/corpora", summary="What can be asked")
    async def corpora() -> list[CorpusInfo]:
        return [_info(name, corpus) for name, corpus in sorted(engine().corpora.items())]

    @app.post("/queries", tags=["drop-in"], summary="R1-Searcher's retriever")
    async def queries(body: QueriesRequest, request: Request, corpus: Name = DEFAULT) -> Response:
        found_Q = await _while_connected(request, _find(engine(), body.queries, corpus, body.k))
        answers = [[_numbered_line(row, passage) for row, passage in found] for found in found_Q]
        return _json(json.dumps({"queries": body.queries, "answers": answers}).encode())

    @app.post("/retrieve", tags=["drop-in"], summary="Search-R1's retriever, as verl, SkyRL and ASearcher call it")
    async def retrieve(body: RetrieveRequest, request: Request, corpus: Name = DEFAULT) -> Response:
        found_Q = await _while_connected(request, _find(engine(), body.queries, corpus, body.topk))
        shape = _scored_document if body.return_scores else _document
        result = [[shape(passage) for _, passage in found] for found in found_Q]
        return _json(json.dumps({"result": result}).encode())


def _refuse_blank(queries: Sequence[str]) -> None:
    for position, query in enumerate(queries):
        if not query.strip():
            raise InvalidInput(f"body.queries.{position}: {query!r} holds no words; leave it out")


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """`work`, cancelled when the caller hangs up: nobody would read the answer, and others wait."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(CALLER_HUNG_UP, "the caller hung up")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _search_response(name: str, corpus: Corpus, hits_Q: Sequence[Hits]) -> bytes:
    """SearchResponse as JSON. The passages lie on disk as JSON already; only the scores are written here."""
    lists = b",".join(b"[" + b",".join(_scored_lines(corpus, hits)) + b"]" for hits in hits_Q)
    head = json.dumps({"corpus": name, "index": corpus.sha256})[:-1].encode()
    return head + b',"results":[' + lists + b"]}"


def _scored_lines(corpus: Corpus, hits: Hits) -> list[bytes]:
    return [
        corpus.passages.line(row)[:-1] + b',"score":%.7g}' % score
        for row, score in zip(hits.rows.tolist(), hits.scores.tolist(), strict=True)
    ]


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def _info(name: str, corpus: Corpus) -> CorpusInfo:
    facts = corpus.manifest
    return CorpusInfo(name=name, kind=facts.index.kind, num_passages=facts.num_passages, index=corpus.sha256)


# ---------------------------------------------------------------------------------------------------------------------
# Drop-in routes


async def _find(engine: Engine, queries: Sequence[str], corpus_name: str, k: int) -> list[list[tuple[int, Passage]]]:
    """Rows and passages per query. A blank query, as a policy may write one, finds nothing: those clients do not
    survive an error."""
    corpus = engine.corpus(corpus_name)
    asked = [query for query in queries if query.strip()]
    hits = dict(zip(asked, await engine.search(asked, corpus=corpus, k=k), strict=True))
    with metrics.STAGE_SECONDS.labels("fetch").time():
        return [_passages(corpus, hits[query]) if query in hits else [] for query in queries]


def _passages(corpus: Corpus, hits: Hits) -> list[tuple[int, Passage]]:
    lines = _scored_lines(corpus, hits)
    return [(row, Passage.model_validate_json(line)) for row, line in zip(hits.rows.tolist(), lines, strict=True)]


def _numbered_line(row: int, passage: Passage) -> str:
    """R1-Searcher's clients remove a leading number and the space after it, so there must be a number."""
    number = passage.id if passage.id.isdecimal() else row
    return f"{number}\t{' '.join(passage.line.splitlines())}"


def _document(passage: Passage) -> dict[str, Any]:
    return {"id": passage.id, "contents": f'"{passage.title}"\n{passage.text}'}


def _scored_document(passage: Passage) -> dict[str, Any]:
    return {"document": _document(passage), "score": passage.score}
