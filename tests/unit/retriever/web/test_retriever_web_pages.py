"""A static site, and sites that are none: what becomes of a URL."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from prometheus_client import REGISTRY

from services.retriever.web.extractor import Extractor, TooHard
from services.retriever.web.guard import resolved
from services.retriever.web.pages import MAX_REDIRECTS, Page, PageReader
from tests.web_toys import NEVER, Answer, ToyServer, toy_server

pytestmark = pytest.mark.anyio

ROME = "Rome is the capital city of Italy, and it has been inhabited for more than twenty-eight centuries."
LAZIO = "Lazio is one of the twenty administrative regions of Italy, and it lies in the centre of the country."
ARTICLE = f"""<!doctype html><html><head><title>Rome</title><script>var ads = 1</script></head><body>
<nav><a href="/a">Home</a> <a href="/b">Subscribe</a></nav>
<article><h1>Rome</h1><p>{ROME}</p><p>{LAZIO}</p></article>
<footer>Cookies and privacy</footer></body></html>""".encode()

Read = Callable[[str], Awaitable[Page]]


@pytest.fixture
async def toy() -> AsyncIterator[ToyServer]:
    async with toy_server() as toy:
        yield toy


@pytest.fixture
async def reader(toy: ToyServer) -> AsyncIterator[PageReader]:
    """The toy is the only address inside that may be read."""

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"] if host.endswith((".example", ".wikipedia.org")) else await resolved(host, port)

    reader = PageReader(
        max_bytes=100_000, seconds=20.0, user_agent="Toy/1.0", allowed=[("127.0.0.1", toy.port)], resolve=resolve
    )
    yield reader
    await reader.close()


async def test_a_page_is_its_main_text(toy: ToyServer, reader: PageReader) -> None:
    page = await reader.read(toy.says("/rome", Answer(ARTICLE)))

    assert page.unread == ""
    assert (ROME in page.text, LAZIO in page.text) == (True, True)
    for noise in ("Subscribe", "Cookies", "ads"):
        assert noise not in page.text


async def test_one_introduces_oneself_and_the_host_keeps_its_name(toy: ToyServer, reader: PageReader) -> None:
    toy.says("/rome", Answer(ARTICLE))

    await reader.read(f"http://site.example:{toy.port}/rome")

    (asked,) = toy.received
    assert (asked.headers["user-agent"], asked.headers["host"]) == ("Toy/1.0", f"site.example:{toy.port}")
    assert "cookie" not in asked.headers


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer(b"Just text.\n", headers={"Content-Type": "text/plain"}), "Just text."),
        (Answer("Müller".encode("latin-1"), headers={"Content-Type": "text/plain; charset=ISO-8859-1"}), "Müller"),
        (Answer("Müller".encode(), headers={"Content-Type": "text/plain; charset=nonsense"}), "Müller"),
        (Answer("Müller".encode(), headers={"Content-Type": "text/plain; charset=idna"}), "Müller"),
        (Answer("Müller".encode(), headers={"Content-Type": "text/plain; charset=undefined"}), "Müller"),
        (Answer("Müller".encode(), headers={"Content-Type": "text/plain; charset=Punycode"}), "Müller"),
        (Answer(b"A\\u0042 +AGE-", headers={"Content-Type": "text/plain; charset=unicode_escape"}), "A\\u0042 +AGE-"),
        (Answer(b"A\\u0042 +AGE-", headers={"Content-Type": "text/plain; charset=utf7"}), "A\\u0042 +AGE-"),
        (Answer("東京".encode("shift_jis"), headers={"Content-Type": 'text/plain; charset="Shift_JIS"'}), "東京"),
        (Answer(b"a\x00b", headers={"Content-Type": "text/plain"}), "ab"),
    ],
)
async def test_plain_text_is_taken_in_its_own_encoding(
    toy: ToyServer, reader: PageReader, answer: Answer, text: str
) -> None:
    assert await reader.read(toy.says("/text", answer)) == Page(text=text)


async def test_a_page_says_its_encoding_itself(toy: ToyServer, reader: PageReader) -> None:
    page = ARTICLE.decode().replace("<head>", '<head><meta charset="iso-8859-1">').replace("capital city", "città")

    read = await reader.read(toy.says("/rome", Answer(page.encode("latin-1"))))

    assert "Rome is the città of Italy" in read.text


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(ARTICLE, status=404), "status"),
        (Answer(ARTICLE, status=500), "status"),
        (Answer(status=302), "status"),  # leads nowhere
        (Answer(b"%PDF-1.7", headers={"Content-Type": "application/pdf"}), "content_type"),
        (Answer({"a": 1}), "content_type"),
        (Answer(b""), "no_text"),
        (Answer(b"<html><body></body></html>"), "no_text"),
        (Answer(bytes(range(256)) * 10), "no_text"),
        (Answer(b"x" * 100_001), "too_large"),
        (Answer(gzip.compress(b"x" * 10_000_000), headers={"Content-Encoding": "gzip"}), "too_large"),
        (Answer(ARTICLE, cut_after_bytes=50), "garbled"),
        (Answer(hang_up=True), "garbled"),
    ],
)
async def test_a_page_that_cannot_be_read_has_a_reason_and_is_counted(
    toy: ToyServer, reader: PageReader, answer: Answer, why: str
) -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("searcher_retriever_web_pages_total", {"outcome": why}) or 0.0

    before = counted()

    assert await reader.read(toy.says("/page", answer)) == Page(text="", unread=why)
    assert counted() == before + 1


async def test_a_slow_page_is_given_up(toy: ToyServer) -> None:
    reader = PageReader(max_bytes=1_000, seconds=0.1, user_agent="", allowed=[("127.0.0.1", toy.port)])

    assert (await reader.read(toy.says("/slow", Answer(ARTICLE, delay_seconds=NEVER)))).unread == "timeout"
    await reader.close()


async def test_redirects_are_followed(toy: ToyServer, reader: PageReader) -> None:
    toy.says("/rome", Answer(ARTICLE))
    toy.says("/b", Answer(status=301, headers={"Location": "/rome"}))
    start = toy.says("/a", Answer(status=302, headers={"Location": toy.url("/b#top")}))

    assert ROME in (await reader.read(start)).text


async def test_a_redirect_that_is_not_escaped_is_read_as_utf8(toy: ToyServer, reader: PageReader) -> None:
    toy.says("/caf%C3%A9", Answer(ARTICLE))
    start = toy.says("/a", Answer(status=301, headers={"Location": "/café"}))

    assert ROME in (await reader.read(start)).text


async def test_a_circle_of_redirects_ends(toy: ToyServer, reader: PageReader) -> None:
    start = toy.says("/a", Answer(status=302, headers={"Location": "/a"}))

    assert (await reader.read(start)).unread == "redirects"
    assert len(toy.received) == MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://127.0.0.1:1/", "loopback"),
        ("http://[::ffff:127.0.0.1]/", "loopback"),
        ("http://169.254.169.254/latest/meta-data/", "metadata"),
        ("http://2130706433/", "url"),
        ("//10.0.0.1/", "private"),
        ("file:///etc/passwd", "scheme"),
        ("http://user@site.example/", "userinfo"),
    ],
)
async def test_a_redirect_does_not_lead_inside(toy: ToyServer, reader: PageReader, location: str, reason: str) -> None:
    def counted() -> float:
        name = "searcher_retriever_web_refused_addresses_total"
        return REGISTRY.get_sample_value(name, {"reason": reason}) or 0.0

    before = counted()
    start = toy.says("/a", Answer(status=302, headers={"Location": location}))

    assert await reader.read(start) == Page(text="", unread="refused")
    assert counted() == before + 1


async def test_another_port_of_the_same_machine_is_not_read(toy: ToyServer, reader: PageReader) -> None:
    async with toy_server() as inside:
        secret = inside.says("/secret", Answer(ARTICLE))

        assert (await reader.read(secret)).unread == "refused"
        assert (await reader.read(f"http://site.example:{inside.port}/secret")).unread == "refused"
        assert inside.received == []


async def test_wikipedias_references_are_not_text(toy: ToyServer, reader: PageReader) -> None:
    page = f"{ROME}\n\nReferences\nSmith, 1999.\n".encode()
    toy.says("/wiki/Rome", Answer(page, headers={"Content-Type": "text/plain"}))

    wikipedia = await reader.read(f"http://en.wikipedia.org:{toy.port}/wiki/Rome")
    elsewhere = await reader.read(f"http://en.wikipedia.org.example:{toy.port}/wiki/Rome")

    assert wikipedia.text == ROME
    assert elsewhere.text.endswith("Smith, 1999.")


# ---------------------------------------------------------------------------------------------------------------------
# The process that looks for the text

MANY_LINKS = b"<html><body>" + b"<a href=x>click here now please</a>" * 140_000 + b"</body></html>"
"""Takes trafilatura minutes."""


async def test_a_page_that_takes_for_ever_dies_with_its_process_and_the_next_is_read() -> None:
    extractor = Extractor(processes=1, seconds=0.5)

    with pytest.raises(TooHard):
        await extractor.text(MANY_LINKS, "text/html")
    patient = Extractor(processes=1)
    assert ROME in await patient.text(ARTICLE, "text/html")

    assert extractor._idle == []
    await extractor.close()
    await patient.close()


@pytest.mark.parametrize("noticed", [True, False])
async def test_an_idle_process_that_was_killed_is_replaced_and_no_page_blamed(noticed: bool) -> None:
    extractor = Extractor(processes=1)
    await extractor.text(ARTICLE, "text/html")
    (process,) = extractor._idle
    process.kill()
    if noticed:
        await process.wait()

    assert ROME in await extractor.text(ARTICLE, "text/html")

    assert [idle.pid for idle in extractor._idle] != [process.pid]
    await extractor.close()


async def test_processes_stay_and_are_no_more_than_allowed() -> None:
    extractor = Extractor(processes=2)

    texts = await asyncio.gather(*(extractor.text(f"text {n}".encode(), "text/plain") for n in range(20)))

    assert texts == [f"text {n}" for n in range(20)]
    assert len(extractor._idle) == 2
    await extractor.close()


async def test_who_leaves_takes_the_process_along() -> None:
    extractor = Extractor(processes=1)
    await extractor.text(b"warm", "text/plain")
    (process,) = extractor._idle
    caller = asyncio.create_task(extractor.text(MANY_LINKS, "text/html"))
    await asyncio.sleep(0.05)

    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)

    assert process.returncode is not None
    assert await extractor.text(b"next", "text/plain") == "next"  # and not the answer to the page before
    await extractor.close()
