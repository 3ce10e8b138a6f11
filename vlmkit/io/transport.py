"""Connections to public addresses only, with a deadline that no slow server can extend.

The address is checked where the connection is made, so neither a redirect nor a name server that answers differently
the second time gets past it.
"""

import contextlib
import ipaddress
import math
import socket
import ssl
import threading
import time
from collections.abc import Collection, Iterable
from typing import Any

import httpcore2
import httpx2

MAX_ADDRESSES = 3  # of one host that are tried
KEEPALIVE_SECONDS = 5.0
NAT64 = ipaddress.ip_network("64:ff9b::/96")

_thread = threading.local()


class AddressError(httpx2.RequestError):
    """The host has no address that may be connected to."""


def set_deadline(moment: float) -> None:
    """Set the deadline of all transfers in this thread: `moment` of time.monotonic()."""
    _thread.deadline = moment


def time_left(timeout: float | None = None) -> float:
    """`timeout`, or the seconds up to the deadline of this thread, if these are fewer. Raises ReadTimeout after it."""
    left = getattr(_thread, "deadline", math.inf) - time.monotonic()
    if left <= 0:
        raise httpx2.ReadTimeout("it took too long")
    return left if timeout is None else min(timeout, left)


def is_public(address: str) -> bool:
    """Whether an IP address, and the IPv4 address that it may carry, is one of the public internet."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF) if found in NAT64 else found.sixtofour
        if inner is not None and not is_public(str(inner)):
            return False
    return found.is_global and not found.is_multicast


class Transport(httpx2.HTTPTransport):
    """HTTP over at most `connections` checked connections at once.

    `trusted` are host names that may have any address, since the user named them.
    """

    def __init__(self, allow_private: bool, trusted: Collection[str], connections: int) -> None:
        self._network = _Network(allow_private, trusted)
        # In place of HTTPTransport.__init__, which makes the pool and takes no network backend (httpx2 >= 2, < 3).
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpx2.create_ssl_context(),
            max_connections=connections,
            keepalive_expiry=KEEPALIVE_SECONDS,
            network_backend=self._network,
        )

    def close(self) -> None:
        """Cut the connections, so that threads that wait for a server come back; each closes its own."""
        for stream in list(self._network.streams):
            with contextlib.suppress(OSError):  # closed meanwhile
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        for connection in self._pool.connections:
            if connection.is_idle():
                connection.close()


class _Network(httpcore2.SyncBackend):
    """Connects to allowed addresses; `streams` are the connections that are open."""

    def __init__(self, allow_private: bool, trusted: Collection[str]) -> None:
        self._allow_private = allow_private
        self._trusted = trusted
        self.streams: set[httpcore2.NetworkStream] = set()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        addresses = _resolve(host, port)
        allowed = addresses
        if not self._allow_private and host not in self._trusted:
            allowed = [address for address in addresses if is_public(address)]
        if not allowed:
            raise AddressError(f"{host} has the address {addresses[0]}, which is not public; --allow-private allows it")
        for address in allowed[:MAX_ADDRESSES]:
            try:
                stream = super().connect_tcp(address, port, time_left(timeout), local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failed = error
            else:
                return _Stream(stream, self.streams)
        raise failed


def _resolve(host: str, port: int) -> list[str]:
    """The addresses of `host`, each once, in the order of preference."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise httpcore2.ConnectError(f"the host name {host} cannot be resolved now") from None
        raise AddressError(f"unknown host {host} ({error.strerror})") from None
    except UnicodeError:
        raise AddressError(f"{host} is not a host name") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _Stream(httpcore2.NetworkStream):
    """A connection whose reads and writes together keep to the deadline of the thread."""

    def __init__(self, inner: httpcore2.NetworkStream, streams: set[httpcore2.NetworkStream]) -> None:
        self._inner = inner
        self._streams = streams
        streams.add(self)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, time_left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, time_left(timeout))

    def close(self) -> None:
        self._streams.discard(self)
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        self._inner = self._inner.start_tls(ssl_context, server_hostname, time_left(timeout))
        return self

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
