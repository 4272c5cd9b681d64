"""The protocols of other projects' retrieval servers, so that their clients can be pointed here as they are.

    POST /queries                  R1-Searcher          numbered lines of text
    POST /retrieve, /access        Search-R1, verl, SkyRL, ASearcher
    POST /search, /batch_search    ReCall, ReSearch     bare lists; /search of SearchAgentReview is told by its body
    GET  /health                   ReCall, SearchAgentReview

Those clients retry on 503 and give up on 429, and some end their training at any error. So no query at all is answered,
with as many lists; a blank one, as a policy may write it, finds nothing; one that does not end is cut; text that is no
Unicode is mended; and under load a request waits for its turn until its deadline, and once its search has begun, to the
end.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qs

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from searcher.contracts.base import Name
from searcher.contracts.errors import InvalidInput
from searcher.contracts.search import Passage
from searcher.servicekit.call import Call
from searcher.servicekit.frame import Framed
from searcher.servicekit.posts import add_post, invalid_body
from services.retriever.backend import DEFAULT, Ask, Backend
from services.retriever.index.manifest import SourceForm

M = TypeVar("M", bound=BaseModel)

CONTENTS_CHARACTERS = 4_096
"""SearchAgentReview's server cuts passages here, and prompts are dimensioned for it."""
QUERY_CHARACTERS = 8_192
"""More of a query is not read: an encoder reads a few hundred tokens. No page has a longer address."""
_NAME: TypeAdapter[str] = TypeAdapter(Name)


class _Body(BaseModel):
    """Unknown fields are the clients' business, and lists may be longer than ours."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _default(number: int) -> BeforeValidator:
    return BeforeValidator(lambda value: number if value is None else value)


_Texts = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(max_length=16_384)]
"""All that a batch of rollouts asks in one turn. May be none: Search-R1's client asks when nobody searched, too."""
_K = Annotated[int, Field(ge=1, le=100, strict=True)]
_Flag = Annotated[bool, Field(strict=True)]


class QueriesRequest(_Body):
    queries: _Texts
    k: Annotated[_K, _default(3)] = 3


class RetrieveRequest(_Body):
    queries: _Texts = Field(validation_alias=AliasChoices("queries", "query", "query_list"))
    topk: Annotated[_K, _default(3)] = Field(default=3, validation_alias=AliasChoices("topk", "k", "top_n"))
    return_scores: _Flag = False


class AccessRequest(_Body):
    urls: _Texts


class ReCallRequest(_Body):
    query: _Texts
    top_n: Annotated[_K, _default(10)] = 10
    return_score: _Flag = False


class QueryListRequest(_Body):
    queries: _Texts = Field(validation_alias=AliasChoices("query_list", "queries"))
    k: Annotated[_K | tuple[_K, ...], _default(3)] = Field(default=3, validation_alias=AliasChoices("k", "topk"))
    return_scores: _Flag = True

    def k_per_query(self) -> tuple[int, ...]:
        """Raises InvalidInput if there is neither one for all nor one for each."""
        if isinstance(self.k, int):
            return (self.k,) * len(self.queries)
        if len(self.k) in (1, len(self.queries)):
            return self.k if len(self.k) == len(self.queries) else self.k * len(self.queries)
        raise InvalidInput(f"body.k: {len(self.k)} numbers for {len(self.queries)} queries; give one, or one for each")


@dataclass
class _Answers:
    numbers_Q: list[Sequence[int]]
    passages_Q: list[list[Passage]]
    form: SourceForm = SourceForm.JSONL

    def numbered_lines(self) -> list[list[str]]:
        return [
            [_numbered_line(self.form, number, passage) for number, passage in zip(numbers, passages, strict=True)]
            for numbers, passages in zip(self.numbers_Q, self.passages_Q, strict=True)
        ]


class _DropIn:
    """An answer per route: the body of a request -> the JSON that its clients read."""

    def __init__(self, backend: Callable[[], Backend], deadline_seconds: float) -> None:
        self._backend, self._deadline_seconds = backend, deadline_seconds

    async def queries(self, call: Call) -> bytes:
        body = _parse(QueriesRequest, _object(call.body))
        found = await self._find(call, body.queries, [body.k] * len(body.queries))
        return _json({"queries": body.queries, "answers": found.numbered_lines()})

    async def retrieve(self, call: Call) -> bytes:
        body = _parse(RetrieveRequest, _object(call.body))
        passages_Q = (await self._find(call, body.queries, [body.topk] * len(body.queries))).passages_Q
        shape = _scored_document if body.return_scores else _document
        return _json({"result": [[shape(passage) for passage in passages] for passages in passages_Q]})

    async def access(self, call: Call) -> bytes:
        body = _parse(AccessRequest, _object(call.body))
        deadline = call.deadline_seconds(self._deadline_seconds)
        urls = [url for url in body.urls if len(url) <= QUERY_CHARACTERS]
        pages = dict(
            zip(urls, await self._backend().pages(urls, _corpus(call), deadline_seconds=deadline), strict=True)
        )
        found = [pages.get(url) for url in body.urls]
        return _json({"result": [page and _page(Passage.model_validate_json(page)) for page in found]})

    async def search(self, call: Call) -> bytes:
        fields = _object(call.body)
        if "query" in fields:
            return await self._recalled(call, fields)
        body = _parse(QueryListRequest, fields)
        passages_Q = (await self._find(call, body.queries, body.k_per_query())).passages_Q
        return _json(
            {
                "result": [
                    [_titled_document(passage, with_score=body.return_scores) for passage in passages]
                    for passages in passages_Q
                ]
            }
        )

    async def batch_search(self, call: Call) -> bytes:
        return await self._recalled(call, _object(call.body))

    async def _find(self, call: Call, queries: Sequence[str], k_Q: Sequence[int]) -> _Answers:
        queries = [query[:QUERY_CHARACTERS] for query in queries]
        asked = [q for q, query in enumerate(queries) if query.strip()]
        answers = _Answers([()] * len(queries), [[] for _ in queries])
        if asked:
            ask = Ask(
                queries=[queries[q] for q in asked],
                k_Q=[k_Q[q] for q in asked],
                corpus=_corpus(call),
                deadline_seconds=call.deadline_seconds(self._deadline_seconds),
                patient=not call.has_deadline,
            )
            found = await self._backend().search(ask)
            answers.form = found.form
            for q, numbers, lines in zip(asked, found.rows_Q, found.passages_Q, strict=True):
                answers.numbers_Q[q] = numbers
                answers.passages_Q[q] = [Passage.model_validate_json(line) for line in lines]
        return answers

    async def _recalled(self, call: Call, fields: dict[str, Any]) -> bytes:
        body = _parse(ReCallRequest, fields)
        passages_Q = (await self._find(call, body.query, [body.top_n] * len(body.query))).passages_Q
        documents_Q = [[_bare_document(passage) for passage in passages] for passages in passages_Q]
        scores_Q = [[passage.score for passage in passages] for passages in passages_Q]
        is_one = isinstance(fields["query"], str)
        documents, scores = (documents_Q[0], scores_Q[0]) if is_one else (documents_Q, scores_Q)
        return _json([documents, scores] if body.return_score else documents)


def add_routes(app: Framed, backend: Callable[[], Backend], *, deadline_seconds: float) -> None:
    routes = _DropIn(backend, deadline_seconds)

    def add(path: str, answer: Callable[[Call], Awaitable[bytes]], body: type[BaseModel], summary: str) -> None:
        add_post(app, path, answer, body=body, response=Any, summary=summary, tags=["drop-in"])

    add("/queries", routes.queries, QueriesRequest, "R1-Searcher's retriever")
    add("/retrieve", routes.retrieve, RetrieveRequest, "Search-R1's retriever, as verl, SkyRL and ASearcher call it")
    add("/access", routes.access, AccessRequest, "ASearcher's pages by address")
    add(
        "/search", routes.search, QueryListRequest, "ReCall's and SearchAgentReview's retriever, told apart by the body"
    )
    add("/batch_search", routes.batch_search, ReCallRequest, "ReCall's retriever, many queries")

    @app.get("/health", tags=["drop-in"], summary="ReCall's and SearchAgentReview's health check")
    async def health() -> dict[str, object]:
        await backend().check()
        return {"status": "healthy", "retrievers": {"total": 1, "available": 1}}


# ---------------------------------------------------------------------------------------------------------------------
# Bodies in


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = _mended(json.loads(body))
    except ValueError as error:
        raise InvalidInput(f"body: not JSON: {error}") from None
    except RecursionError:
        raise InvalidInput("body: lists and objects are nested too deeply") from None
    if not isinstance(fields, dict):
        raise InvalidInput(f"body: a JSON {type(fields).__name__}, not an object")
    return fields


def _mended(value: Any) -> Any:
    r"""Without halves of surrogate pairs, which JSON can carry (`\ud83d`) and a policy's broken bytes may become."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, list):
        return [_mended(item) for item in value]
    return {key: _mended(item) for key, item in value.items()} if isinstance(value, dict) else value


def _parse(model: type[M], fields: dict[str, Any]) -> M:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise invalid_body(error) from None


def _corpus(call: Call) -> str:
    """`?corpus=name`. Raises InvalidInput."""
    name = parse_qs(call.query_string).get("corpus", [DEFAULT])[-1]
    try:
        return _NAME.validate_python(name)
    except ValidationError:
        raise InvalidInput(f"query.corpus: {name[:80]!r} is not the name of a corpus") from None


# ---------------------------------------------------------------------------------------------------------------------
# Passages out


def _json(content: object) -> bytes:
    return json.dumps(content).encode()


def _numbered_line(form: SourceForm, number: int, passage: Passage) -> str:
    """As in R1-Searcher's own files. Its clients remove a leading number and the space after it, so there must be a
    number."""
    number_shown = passage.id if passage.id.isdecimal() else number
    text = " ".join(passage.text.splitlines())
    if not passage.title:
        return f"{number_shown}\t{text}"
    if form is SourceForm.KILT:
        return f"{number_shown}\t{passage.title}   {text}"
    return f"{number_shown}\tTitle: {passage.title} Text:  {text}"


def _contents(passage: Passage) -> str:
    return f'"{passage.title}"\n{passage.text}'


def _bare_document(passage: Passage) -> dict[str, Any]:
    return {"id": passage.id, "contents": _contents(passage)}


def _document(passage: Passage) -> dict[str, Any]:
    """ASearcher's clients read `url` of every document, empty or not."""
    return {"id": passage.id, "contents": _contents(passage), "url": passage.url}


def _scored_document(passage: Passage) -> dict[str, Any]:
    return {"document": _document(passage), "score": passage.score}


def _titled_document(passage: Passage, *, with_score: bool) -> dict[str, Any]:
    contents = f"{passage.title}\n{passage.text}" if passage.title else passage.text
    document = {"id": passage.id, "title": passage.title, "contents": contents[:CONTENTS_CHARACTERS]}
    return {"document": document, "score": passage.score} if with_score else {"document": document}


def _page(passage: Passage) -> dict[str, Any]:
    return {"url": passage.url, "title": passage.title, "contents": passage.text}
