"""A URL from the web -> a connection to a public address, or a refusal. What is said over it is left to pages.py.

    URL --checked_url--> scheme, host, port --resolve--> every address checked --> connected to that very address

The name is resolved once and the connection goes to the address that was checked, so a name that changes its mind in
between (DNS rebinding) changes nothing; Host and TLS still use the name. However an address is written (decimal, octal,
hexadecimal, inside an IPv6 one), what counts is the address that would be connected to.
"""

import asyncio
import re
import socket
import threading
import unicodedata
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

import httpcore
import idna

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port -> addresses. Raises OSError."""

WEB_PORTS = frozenset({80, 443})
MAX_URL_CHARACTERS = 2_048


class Refusal(StrEnum):
    """Why a URL is not fetched."""

    URL = "url"
    """Not a URL that every reader would read alike."""
    SCHEME = "scheme"
    USERINFO = "userinfo"
    PORT = "port"
    LOOPBACK = "loopback"
    PRIVATE = "private"
    LINK_LOCAL = "link_local"
    METADATA = "metadata"
    """A cloud's instance metadata."""
    MULTICAST = "multicast"
    RESERVED = "reserved"


class AddressRefused(Exception):
    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


# ---------------------------------------------------------------------------------------------------------------------
# Addresses

_NETWORKS: tuple[tuple[Refusal, tuple[str, ...]], ...] = (  # the first that holds an address names the reason
    (Refusal.METADATA, ("169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192")),
    (Refusal.METADATA, ("fd00:ec2::254", "fd20:ce::254")),
    (Refusal.LOOPBACK, ("127.0.0.0/8", "0.0.0.0/8", "::1", "::")),  # 0.0.0.0 connects to this machine
    (Refusal.PRIVATE, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fec0::/10")),
    (Refusal.LINK_LOCAL, ("169.254.0.0/16", "fe80::/10")),
    (Refusal.MULTICAST, ("224.0.0.0/4", "ff00::/8")),
    (Refusal.RESERVED, ("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24")),
    (Refusal.RESERVED, ("203.0.113.0/24", "240.0.0.0/4")),
    # Tunnels and translations to an IPv4 address that the gateway would choose, and documentation.
    (Refusal.RESERVED, ("64:ff9b:1::/48", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")),
)
_REFUSED: tuple[tuple[IPv4Network | IPv6Network, Refusal], ...] = tuple(
    (ip_network(text), reason) for reason, texts in _NETWORKS for text in texts
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP = frozenset({0x0000_5EFE, 0x0200_5EFE})


def refusal_of(address: Address) -> Refusal | None:
    """Why nobody on the web may make us connect there; None for a public address."""
    inner = _inner_ipv4(address)
    if inner is not None and (reason := refusal_of(inner)):
        return reason
    for network, reason in _REFUSED:
        if address in network:
            return reason
    if isinstance(address, IPv6Address) and inner is None and address not in _GLOBAL_UNICAST:
        return Refusal.RESERVED
    return None


def _inner_ipv4(address: Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for."""
    if isinstance(address, IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    bits = int(address)
    if address in _NAT64 or (bits >> 32) & 0xFFFF_FFFF in _ISATAP:
        return IPv4Address(bits & 0xFFFF_FFFF)
    return None


# ---------------------------------------------------------------------------------------------------------------------
# URLs

_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*", re.ASCII)
_UNREADABLE = re.compile(r"[\x00-\x20\x7f-\x9f\\]|[^\S ]")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)


def checked_url(text: str) -> str:
    """The URL in the one form that is sent. Raises AddressRefused where two readers might disagree about the host."""
    if len(text) > MAX_URL_CHARACTERS or _UNREADABLE.search(text):
        raise AddressRefused(Refusal.URL, "longer than 2,048 characters, or holds spaces, controls or backslashes")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise AddressRefused(Refusal.URL, str(error)) from error
    if parts.scheme not in ("http", "https"):
        raise AddressRefused(Refusal.SCHEME, f"{parts.scheme or 'no scheme'}: only http and https are fetched")
    if "@" in parts.netloc:
        raise AddressRefused(Refusal.USERINFO, "a user name or password in the address")
    host = _checked_host(parts.netloc, parts.hostname or "")
    where = host if port is None else f"{host}:{port}"
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    return f"{parts.scheme}://{where}{path}" + (f"?{query}" if query else "")


def _checked_host(netloc: str, host: str) -> str:
    if netloc.startswith("["):
        try:
            address = IPv6Address(host)
        except ValueError:
            _refuse_host(host)
        return _refuse_host(host) if address.scope_id else f"[{address}]"
    name = unicodedata.normalize("NFKC", host).lower().removesuffix(".")
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode()
        except idna.IDNAError:
            _refuse_host(host)
    if not _HOST_NAME.fullmatch(name):
        _refuse_host(host)
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        try:
            IPv4Address(name)  # four decimal numbers and nothing else: 127.1, 0x7f.1 and 2130706433 are not
        except ValueError:
            _refuse_host(host)
    return name


def _refuse_host(host: str) -> NoReturn:
    raise AddressRefused(Refusal.URL, f"{host!r} is neither a name nor an address in its usual form")


# ---------------------------------------------------------------------------------------------------------------------
# Connections


_MOST_LOOKUPS = 128
_lookups = threading.BoundedSemaphore(_MOST_LOOKUPS)


async def resolved(host: str, port: int) -> list[str]:
    """In a thread of its own. The event loop's few are the providers' too, and pages may lead to names whose servers
    do not answer, each of which would hold one for many seconds."""
    if not _lookups.acquire(blocking=False):
        raise OSError(f"{_MOST_LOOKUPS} names are being looked up already")
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[Any]] = loop.create_future()

    def settle(addresses: list[Any], error: Exception | None) -> None:
        if found.done():  # who asked has left
            return
        if error:
            found.set_exception(error)
        else:
            found.set_result(addresses)

    def look_up() -> None:
        addresses, error = [], None
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except Exception as failure:
            error = failure
        finally:
            _lookups.release()
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, addresses, error)

    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    return list(dict.fromkeys(str(address[0]) for *_, address in await found))


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to public addresses on the web's ports only. `allowed` are exceptions, as (address, port)."""

    def __init__(
        self,
        *,
        allowed: Iterable[tuple[str, int]] = (),
        resolve: Resolve = resolved,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._allowed = frozenset((ip_address(address), port) for address, port in allowed)
        self._resolve = resolve
        self._network = network or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's name for it
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises AddressRefused if any address of the host is not public: a host is trusted whole or not at all."""
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in await self._checked(host, port):
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def _checked(self, host: str, port: int) -> list[str]:
        try:
            addresses = [ip_address(text) for text in await self._resolve(host, port)]
        except OSError as error:
            raise httpcore.ConnectError(f"{host} cannot be resolved: {error}") from error
        for address in addresses:
            self._check(address, port, host)
        return [str(address) for address in addresses]

    def _check(self, address: Address, port: int, host: str) -> None:
        if (address, port) in self._allowed:
            return
        if reason := refusal_of(address):
            raise AddressRefused(reason, f"{host} is at {address}")
        if port not in WEB_PORTS:
            raise AddressRefused(Refusal.PORT, f"port {port}: only 80 and 443 are fetched")
