"""Deadlines, retries and errors of the clients."""

from collections.abc import Callable, Iterator

import httpx
import pytest
import stamina

from searcher.clients.retriever import RetrieverClient
from searcher.contracts.errors import Conflict, InvalidInput, SearcherError, UpstreamUnavailable

pytestmark = pytest.mark.anyio

FOUND = {
    "corpus": "default",
    "index": "i",
    "results": [[{"id": "1", "title": "Garum Grove", "text": "A town.", "score": 1.5}]],
}


@pytest.fixture(autouse=True)
def _retries_do_not_wait() -> Iterator[None]:
    with stamina.set_testing(True, attempts=3):
        yield


def client_of(handler: Callable[[httpx.Request], httpx.Response]) -> RetrieverClient:
    return RetrieverClient("http://retriever", transport=httpx.MockTransport(handler))


async def test_a_busy_service_is_asked_again() -> None:
    answers = iter([httpx.Response(503), httpx.Response(502), httpx.Response(200, json=FOUND)])

    async with client_of(lambda request: next(answers)) as client:
        ((passage,),) = await client.search(["garum"], k=1)

    assert passage.title == "Garum Grove"


async def test_an_outage_is_an_error_not_an_empty_result() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    async with client_of(refuse) as client:
        with pytest.raises(UpstreamUnavailable, match="retriever at http://retriever did not answer"):
            await client.search(["garum"], k=1)


async def test_a_wrong_request_is_not_repeated() -> None:
    asked: list[str] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(422, json={"error": "InvalidInput", "detail": "k: too large"})

    async with client_of(refuse) as client:
        with pytest.raises(InvalidInput, match="retriever: k: too large"):
            await client.search(["garum"], k=1)

    assert asked == ["/v1/search"]


async def test_errors_keep_their_name_across_the_wire() -> None:
    async with client_of(lambda r: httpx.Response(409, json={"error": "Conflict", "detail": "moved on"})) as client:
        with pytest.raises(Conflict, match="moved on"):
            await client.search(["garum"], k=1)


async def test_a_failure_of_the_service_itself_is_neither_outage_nor_bad_input() -> None:
    async with client_of(lambda request: httpx.Response(500, text="boom")) as client:
        with pytest.raises(SearcherError, match="HTTP 500") as raised:
            await client.search(["garum"], k=1)

    assert not isinstance(raised.value, InvalidInput | UpstreamUnavailable)


async def test_the_token_is_sent() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200 if request.headers.get("authorization") == "Bearer k" else 401, json=FOUND)

    transport = httpx.MockTransport(handler)
    async with RetrieverClient("http://retriever", api_key="k", transport=transport) as client:
        assert await client.search(["garum"], k=1)
