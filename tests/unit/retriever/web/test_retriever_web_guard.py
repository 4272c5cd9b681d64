"""Whatever a page, a redirect or a name says: connections go to public addresses, and to the one that was checked."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import httpcore
import pytest

from services.retriever.web import guard
from services.retriever.web.exchange import Exchanger, Request
from services.retriever.web.guard import AddressRefused, GuardedBackend, Refusal, checked_url, resolved

pytestmark = pytest.mark.anyio

NAMES = {
    "one.example": ["93.184.216.34"],
    "two.example": ["93.184.216.34", "2606:2800:220:1::1"],
    "half.example": ["93.184.216.34", "127.0.0.1"],
    "inside.example": ["10.1.2.3"],
    "metadata.example": ["169.254.169.254"],
    "mapped.example": ["::ffff:169.254.169.254"],
    "nat64.example": ["64:ff9b::7f00:1"],
    "scoped.example": ["fe80::1%2"],
    "six.example": ["2606:2800:220:1::1"],
    "dns64.example": ["64:ff9b::5db8:d822"],  # 93.184.216.34 as seen from a network with IPv6 only
}


class ToyNetwork(httpcore.AsyncMockBackend):
    """Remembers where one connected to, and what was said there."""

    def __init__(self, *, unreachable: Sequence[str] = (), says: bytes = b"") -> None:
        super().__init__([])
        self.unreachable, self.says = unreachable, says
        self.connected: list[tuple[str, int]] = []
        self.names_in_tls: list[str | None] = []
        self.heard = b""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.connected.append((host, port))
        if host in self.unreachable:
            raise httpcore.ConnectError("no route")
        return ToyStream(self)


class ToyStream(httpcore.AsyncMockStream):
    def __init__(self, network: ToyNetwork) -> None:
        super().__init__([network.says])
        self.network = network

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        self.network.names_in_tls.append(server_hostname)
        return self

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self.network.heard += buffer


async def known_or_literal(host: str, port: int) -> list[str]:
    """Names from the table; literals, however written, as this machine's own resolver reads them."""
    return NAMES[host] if host in NAMES else await resolved(host, port)


async def connect(url: str, network: ToyNetwork, **arguments: object) -> None:
    backend = GuardedBackend(resolve=known_or_literal, network=network, **arguments)  # type: ignore[arg-type]
    origin = httpcore.URL(checked_url(url)).origin
    await backend.connect_tcp(origin.host.decode(), origin.port)


BYPASSES = [
    # loopback, in every notation
    ("http://127.0.0.1/", Refusal.LOOPBACK),
    ("http://127.1.2.3/", Refusal.LOOPBACK),
    ("http://localhost/", Refusal.LOOPBACK),
    ("http://LOCALHOST./", Refusal.LOOPBACK),
    ("http://127.0.0.1./", Refusal.LOOPBACK),
    ("http://0.0.0.0/", Refusal.LOOPBACK),
    ("http://0/", Refusal.URL),
    ("http://127.1/", Refusal.URL),
    ("http://2130706433/", Refusal.URL),
    ("http://017700000001/", Refusal.URL),
    ("http://0x7f000001/", Refusal.URL),
    ("http://0x7f.0.0.1/", Refusal.URL),
    ("http://0177.0.0.1/", Refusal.URL),
    ("http://127.0.0.01/", Refusal.URL),
    ("http://127.0.0.1.0x0/", Refusal.URL),
    ("http://\uff11\uff12\uff17.0.0.1/", Refusal.LOOPBACK),  # full-width digits
    ("http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/", Refusal.LOOPBACK),  # circled digits
    ("http://127\u30020\u30020\u30021/", Refusal.LOOPBACK),  # ideographic full stops
    ("http://[::1]/", Refusal.LOOPBACK),
    ("http://[0:0:0:0:0:0:0:1]/", Refusal.LOOPBACK),
    ("http://[::]/", Refusal.LOOPBACK),
    ("http://[::ffff:127.0.0.1]/", Refusal.LOOPBACK),
    ("http://[::ffff:7f00:1]/", Refusal.LOOPBACK),
    ("http://[::127.0.0.1]/", Refusal.RESERVED),
    ("http://[64:ff9b::127.0.0.1]/", Refusal.LOOPBACK),
    ("http://[64:ff9b:1::7f00:1]/", Refusal.RESERVED),
    ("http://[2002:7f00:1::]/", Refusal.LOOPBACK),
    ("http://[2002:5db8:d822::]/", Refusal.RESERVED),
    ("http://[2001:0:5ef5:79fb:0:0:80ff:fffe]/", Refusal.RESERVED),  # Teredo
    ("http://[2606:2800::5efe:127.0.0.1]/", Refusal.LOOPBACK),  # ISATAP
    # private, link-local, metadata
    ("http://10.0.0.1/", Refusal.PRIVATE),
    ("http://172.16.0.1/", Refusal.PRIVATE),
    ("http://172.31.255.255/", Refusal.PRIVATE),
    ("http://192.168.1.1/", Refusal.PRIVATE),
    ("http://100.64.0.1/", Refusal.PRIVATE),
    ("http://[fc00::1]/", Refusal.PRIVATE),
    ("http://[fec0::1]/", Refusal.PRIVATE),
    ("http://169.254.10.20/", Refusal.LINK_LOCAL),
    ("http://[fe80::1]/", Refusal.LINK_LOCAL),
    ("http://[fe80::1%25eth0]/", Refusal.URL),
    ("http://169.254.169.254/latest/meta-data/", Refusal.METADATA),
    ("http://169.254.170.2/v2/credentials", Refusal.METADATA),
    ("http://100.100.100.200/", Refusal.METADATA),
    ("http://168.63.129.16/", Refusal.METADATA),
    ("http://[fd00:ec2::254]/", Refusal.METADATA),
    ("http://[::ffff:a9fe:a9fe]/", Refusal.METADATA),
    ("http://2852039166/", Refusal.URL),  # 169.254.169.254
    # neither public nor anybody's
    ("http://224.0.0.1/", Refusal.MULTICAST),
    ("http://[ff02::1]/", Refusal.MULTICAST),
    ("http://255.255.255.255/", Refusal.RESERVED),
    ("http://240.0.0.1/", Refusal.RESERVED),
    ("http://192.0.2.1/", Refusal.RESERVED),
    ("http://198.18.0.1/", Refusal.RESERVED),
    ("http://[2001:db8::1]/", Refusal.RESERVED),
    ("http://[100::1]/", Refusal.RESERVED),
    # names
    ("http://inside.example/", Refusal.PRIVATE),
    ("http://metadata.example/", Refusal.METADATA),
    ("http://mapped.example/", Refusal.METADATA),
    ("http://nat64.example/", Refusal.LOOPBACK),
    ("http://scoped.example/", Refusal.LINK_LOCAL),
    ("http://half.example/", Refusal.LOOPBACK),  # one bad address spoils the name
    # URLs that two readers read differently
    ("http://one.example@127.0.0.1/", Refusal.USERINFO),
    ("http://127.0.0.1@one.example/", Refusal.USERINFO),
    ("http://127.0.0.1:80@one.example/", Refusal.USERINFO),
    ("http://one.example\\@127.0.0.1/", Refusal.URL),
    ("http://127.0.0.1\t.one.example/", Refusal.URL),
    ("http://one.example\r\nHost: 127.0.0.1/", Refusal.URL),
    ("http://one.example%2f@127.0.0.1/", Refusal.USERINFO),
    ("http://127.0.0.1%00.one.example/", Refusal.URL),
    ("http://one.example:80:80/", Refusal.URL),
    ("http://[::1/", Refusal.URL),
    ("http:///path", Refusal.URL),
    ("http://one..example/", Refusal.URL),
    ("http://one.example/" + "x" * 3_000, Refusal.URL),
    # schemes and ports
    ("file:///etc/passwd", Refusal.SCHEME),
    ("gopher://one.example/", Refusal.SCHEME),
    ("ftp://one.example/", Refusal.SCHEME),
    ("dict://one.example:11211/", Refusal.SCHEME),
    ("//one.example/", Refusal.SCHEME),
    ("javascript:alert(1)", Refusal.SCHEME),
    ("http://one.example:22/", Refusal.PORT),
    ("http://one.example:6379/", Refusal.PORT),
    ("https://one.example:8443/", Refusal.PORT),
]


@pytest.mark.parametrize(("url", "reason"), BYPASSES, ids=[ascii(url)[:60] for url, _ in BYPASSES])
async def test_no_notation_leads_inside(url: str, reason: Refusal) -> None:
    network = ToyNetwork()

    with pytest.raises(AddressRefused) as refused:
        await connect(url, network)

    assert refused.value.reason == reason
    assert network.connected == []


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://one.example/", ("93.184.216.34", 80)),
        ("https://one.example/", ("93.184.216.34", 443)),
        ("https://one.example:443/a?b=c#d", ("93.184.216.34", 443)),
        ("http://ONE.example./", ("93.184.216.34", 80)),
        ("http://two.example/", ("93.184.216.34", 80)),
        ("http://six.example/", ("2606:2800:220:1::1", 80)),
        ("http://dns64.example/", ("64:ff9b::5db8:d822", 80)),
        ("http://93.184.216.34/", ("93.184.216.34", 80)),
        ("http://[2606:2800:220:1::1]/", ("2606:2800:220:1::1", 80)),
    ],
)
async def test_public_addresses_are_connected_to_by_the_address_that_was_checked(
    url: str, address: tuple[str, int]
) -> None:
    network = ToyNetwork()

    await connect(url, network)

    assert network.connected == [address]


async def test_the_server_is_asked_by_its_name_at_the_address_that_was_checked() -> None:
    network = ToyNetwork(says=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    exchanger = Exchanger(backend=GuardedBackend(resolve=known_or_literal, network=network))

    response = await exchanger.exchange(Request("GET", "https://one.example/"), max_bytes=10, seconds=30.0)
    await exchanger.close()

    assert response.content == b"hi"
    assert network.connected == [("93.184.216.34", 443)]
    assert network.names_in_tls == ["one.example"]
    assert b"Host: one.example\r\n" in network.heard


async def test_names_that_nobody_answers_hold_up_only_who_asked_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    look_up = socket.getaddrinfo

    def slow(host: str, port: int, **options: Any) -> Any:
        if host.endswith(".example"):
            answered.wait(30)
            raise socket.gaierror("no answer")
        return look_up(host, port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    lost = [asyncio.create_task(resolved(f"slow{n}.example", 80)) for n in range(100)]
    await asyncio.sleep(0.05)

    async with asyncio.timeout(10):
        assert await resolved("127.0.0.1", 80) == ["127.0.0.1"]
        assert await asyncio.to_thread(lambda: "the loop's own threads are free") != ""
    answered.set()
    assert {type(error) for error in await asyncio.gather(*lost, return_exceptions=True)} == {socket.gaierror}


async def test_only_so_many_names_are_looked_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_lookups", threading.BoundedSemaphore(1))
    guard._lookups.acquire()

    with pytest.raises(OSError, match="names are being looked up already"):
        await resolved("127.0.0.1", 80)

    guard._lookups.release()
    assert await resolved("127.0.0.1", 80) == ["127.0.0.1"]


async def test_a_name_that_changes_its_mind_is_resolved_once() -> None:
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])
    network = ToyNetwork()

    async def rebinding(host: str, port: int) -> list[str]:
        return next(answers)

    await GuardedBackend(resolve=rebinding, network=network).connect_tcp("rebinding.example", 80)

    assert network.connected == [("93.184.216.34", 80)]
    assert next(answers) == ["127.0.0.1"]


async def test_the_next_address_is_tried_when_one_cannot_be_reached() -> None:
    network = ToyNetwork(unreachable=["93.184.216.34"])

    await connect("http://two.example/", network)

    assert network.connected == [("93.184.216.34", 80), ("2606:2800:220:1::1", 80)]


async def test_an_exception_is_one_address_on_one_port() -> None:
    network = ToyNetwork()

    await connect("http://10.0.0.5:8080/", network, allowed=[("10.0.0.5", 8080)])

    assert network.connected == [("10.0.0.5", 8080)]
    for other in ("http://10.0.0.5/", "http://10.0.0.6:8080/", "http://inside.example:8080/"):
        with pytest.raises(AddressRefused):
            await connect(other, network, allowed=[("10.0.0.5", 8080)])


async def test_a_name_without_an_address_is_not_reached() -> None:
    async def unknown(host: str, port: int) -> list[str]:
        raise OSError("Name or service not known")

    with pytest.raises(httpcore.ConnectError, match=r"nowhere\.example cannot be resolved"):
        await GuardedBackend(resolve=unknown).connect_tcp("nowhere.example", 80)


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://one.example", "http://one.example/"),
        ("HTTPS://One.Example./Über uns".replace(" ", "%20"), "https://one.example/%C3%9Cber%20uns"),
        ("http://one.example/a?q=東京&b=1", "http://one.example/a?q=%E6%9D%B1%E4%BA%AC&b=1"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://one.example/#top", "http://one.example/"),
        ("http://one.example/%41%2F", "http://one.example/%41%2F"),
    ],
)
def test_a_url_is_sent_in_one_form(url: str, sent: str) -> None:
    assert checked_url(url) == sent
