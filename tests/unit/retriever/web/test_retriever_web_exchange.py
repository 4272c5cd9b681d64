"""One request, one response: never more bytes or seconds than asked for."""

import gzip
import socket
from collections.abc import AsyncIterator

import pytest

from services.retriever.web.exchange import ExchangeFailed, Exchanger, NoResponse, Request, Response, _read
from tests.web_toys import NEVER, Answer, ToyServer, toy_server

pytestmark = pytest.mark.anyio


@pytest.fixture
async def toy() -> AsyncIterator[ToyServer]:
    async with toy_server() as toy:
        yield toy


@pytest.fixture
async def exchanger() -> AsyncIterator[Exchanger]:
    exchanger = Exchanger()
    yield exchanger
    await exchanger.close()


async def get(exchanger: Exchanger, url: str, *, max_bytes: int = 1_000, seconds: float = 30.0) -> Response:
    return await exchanger.exchange(Request("GET", url, {"X-Ours": "1"}), max_bytes=max_bytes, seconds=seconds)


async def failure(exchanger: Exchanger, url: str, *, max_bytes: int = 1_000, seconds: float = 30.0) -> NoResponse:
    with pytest.raises(ExchangeFailed) as failed:
        await get(exchanger, url, max_bytes=max_bytes, seconds=seconds)
    return failed.value.why


async def test_a_response_is_what_was_sent(toy: ToyServer, exchanger: Exchanger) -> None:
    url = toy.says("/a", Answer(b"hello", status=418, headers={"X-Theirs": "2"}))

    response = await get(exchanger, url + "?q=1")

    assert (response.status, response.content, response.headers["x-theirs"]) == (418, b"hello", "2")
    (asked,) = toy.received
    assert (asked.method, asked.path, asked.parameters, asked.headers["x-ours"]) == ("GET", "/a", {"q": "1"}, "1")
    assert asked.headers["host"] == f"127.0.0.1:{toy.port}"


async def test_a_body_is_sent(toy: ToyServer, exchanger: Exchanger) -> None:
    await exchanger.exchange(Request("POST", toy.url("/a"), content=b"{}"), max_bytes=10, seconds=30.0)

    assert toy.received[0].body == b"{}"


async def test_gzip_is_unpacked(toy: ToyServer, exchanger: Exchanger) -> None:
    url = toy.says("/a", Answer(gzip.compress(b"hello"), headers={"Content-Encoding": "gzip"}))

    assert (await get(exchanger, url)).content == b"hello"
    assert toy.received[0].headers["accept-encoding"] == "gzip"


ROME, LAZIO = gzip.compress(b"Rome and "), gzip.compress(b"Lazio")


@pytest.mark.parametrize(
    ("body", "content"),
    [
        (ROME + LAZIO, b"Rome and Lazio"),
        (gzip.compress(b"") + ROME + gzip.compress(b"") + LAZIO, b"Rome and Lazio"),
        (ROME + b"\0" * 512 + LAZIO + b"\0" * 512, b"Rome and Lazio"),
        (ROME + b"padding", b"Rome and "),
        (
            b"".join(gzip.compress(bytes([65 + n % 26])) for n in range(1_000)),
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZ" * 38 + b"ABCDEFGHIJKL",
        ),
    ],
    ids=["two", "empty ones", "zeros", "padding", "many"],
)
async def test_every_member_of_a_gzip_stream_is_unpacked(
    toy: ToyServer, exchanger: Exchanger, body: bytes, content: bytes
) -> None:
    url = toy.says("/a", Answer(body, headers={"Content-Encoding": "gzip"}))

    assert (await get(exchanger, url)).content == content


@pytest.mark.parametrize("num_bytes", [1, 10, 17, 18, 19])
async def test_members_may_be_cut_anywhere_between_two_packets(num_bytes: int) -> None:
    async def packets() -> AsyncIterator[bytes]:
        body = ROME + b"\0\0" + LAZIO + b"\0"
        for start in range(0, len(body), num_bytes):
            yield body[start : start + num_bytes]

    assert await _read(packets(), "gzip", 1_000) == b"Rome and Lazio"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(b"x" * 1_001), NoResponse.TOO_LARGE),
        (Answer(gzip.compress(b"x" * 1_001), headers={"Content-Encoding": "gzip"}), NoResponse.TOO_LARGE),
        (Answer(gzip.compress(b"x" * 50_000_000), headers={"Content-Encoding": "gzip"}), NoResponse.TOO_LARGE),
        (Answer(gzip.compress(b"x" * 600) * 2, headers={"Content-Encoding": "gzip"}), NoResponse.TOO_LARGE),
        (Answer(gzip.compress(b"") * 10_000, headers={"Content-Encoding": "gzip"}), NoResponse.TOO_LARGE),
        (Answer(ROME + LAZIO[:-9], headers={"Content-Encoding": "gzip"}), NoResponse.GARBLED),
        (Answer(ROME + LAZIO[:5], headers={"Content-Encoding": "gzip"}), NoResponse.GARBLED),
        (Answer(gzip.compress(b"hello")[:-9], headers={"Content-Encoding": "gzip"}), NoResponse.GARBLED),
        (Answer(b"hello", headers={"Content-Encoding": "gzip"}), NoResponse.GARBLED),
        (Answer(b"hello", headers={"Content-Encoding": "br"}), NoResponse.GARBLED),
        (Answer(b"hello", headers={"Content-Encoding": "gzip, gzip"}), NoResponse.GARBLED),
        (Answer(b"hello", cut_after_bytes=3), NoResponse.GARBLED),
        (Answer(hang_up=True), NoResponse.GARBLED),
        (Answer(b"hello", headers={"Content-Length": "many"}), NoResponse.GARBLED),
    ],
)
async def test_what_is_no_whole_response_has_a_reason(
    toy: ToyServer, exchanger: Exchanger, answer: Answer, why: NoResponse
) -> None:
    assert await failure(exchanger, toy.says("/a", answer)) is why


async def test_a_bomb_is_not_unpacked_beyond_the_limit(toy: ToyServer, exchanger: Exchanger) -> None:
    import tracemalloc

    bomb = Answer(gzip.compress(b"\0" * 200_000_000), headers={"Content-Encoding": "gzip"})
    url = toy.says("/a", bomb)

    tracemalloc.start()
    await failure(exchanger, url, max_bytes=1_000_000)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 20_000_000


async def test_exactly_the_limit_is_not_too_large(toy: ToyServer, exchanger: Exchanger) -> None:
    url = toy.says("/a", Answer(gzip.compress(b"x" * 1_000), headers={"Content-Encoding": "gzip"}))

    assert len((await get(exchanger, url)).content) == 1_000


async def test_a_server_that_does_not_answer_is_given_up(toy: ToyServer, exchanger: Exchanger) -> None:
    url = toy.says("/a", Answer(delay_seconds=NEVER))

    assert await failure(exchanger, url, seconds=0.05) is NoResponse.TIMEOUT


async def test_nobody_there_is_unreachable(exchanger: Exchanger) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

    assert await failure(exchanger, f"http://127.0.0.1:{port}/") is NoResponse.UNREACHABLE


async def test_no_proxy_of_the_environment_is_asked(
    toy: ToyServer, exchanger: Exchanger, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with toy_server() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url())
        await get(exchanger, toy.says("/a", Answer(b"hello")))

        assert (len(toy.received), len(proxy.received)) == (1, 0)


async def test_a_redirect_is_an_answer_and_not_followed(toy: ToyServer, exchanger: Exchanger) -> None:
    url = toy.says("/a", Answer(status=302, headers={"Location": toy.url("/b")}))

    assert (await get(exchanger, url)).status == 302
    assert toy.asked("/b") == []


def test_a_request_does_not_show_its_key() -> None:
    request = Request("GET", "https://x.example/?key=secret", {"X-Key": "secret"}, b"secret")

    assert "secret" not in repr(request)
