"""Connections for fetching: to public addresses only, and within a time that no slow server can stretch.

The address is checked where the connection is made, so neither a redirect nor a name server that answers differently
the second time gets past it.
"""

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import httpcore2
import httpx2

from vlmkit.io.sources import PictureError

MAX_ADDRESSES = 3  # of one host that are tried
NAT64 = ipaddress.ip_network("64:ff9b::/96")

_limit = threading.local()


def finish_by(moment: float) -> None:
    """From now on no transfer in this thread goes on past `moment` of time.monotonic()."""
    _limit.moment = moment


def _left(timeout: float | None) -> float:
    left = _limit.moment - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout("it took too long")
    return left if timeout is None else min(timeout, left)


def is_public(address: str) -> bool:
    """Whether an IP address, and the IPv4 address that it may carry, is one of the public internet."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF) if found in NAT64 else found.sixtofour
        if inner is not None and not is_public(str(inner)):
            return False
    return found.is_global and not found.is_multicast


class Transport(httpx2.BaseTransport):
    """HTTP for httpx2 over connections of our own; `connections` is how many there may be at once.

    `trusted` are host names that may have any address, since the user named them.
    """

    def __init__(self, *, allow_private: bool, connections: int, trusted: Collection[str] = ()) -> None:
        self._network = _Network(allow_private, trusted)
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpx2.create_ssl_context(),
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=5.0,
            network_backend=self._network,
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        reply = self._pool.handle_request(
            httpcore2.Request(
                request.method,
                httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx2.Response(
            reply.status, headers=reply.headers, stream=_Body(reply.stream), extensions=reply.extensions
        )

    def close(self) -> None:
        """Cut the connections, so that threads that wait for a server come back."""
        self._network.cut()

    def free(self) -> None:
        """Close what is cut, once no thread uses it any more."""
        self._pool.close()


class _Body(httpx2.SyncByteStream):
    def __init__(self, chunks: Any) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        yield from self._chunks

    def close(self) -> None:
        self._chunks.close()


class _Network(httpcore2.SyncBackend):
    def __init__(self, allow_private: bool, trusted: Collection[str]) -> None:
        self._allow_private = allow_private
        self._trusted = trusted
        self._open: set[httpcore2.NetworkStream] = set()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        addresses = _resolve(host, port)
        free = self._allow_private or host in self._trusted
        allowed = addresses if free else [a for a in addresses if is_public(a)]
        if not allowed:
            raise PictureError(f"{host} is not at a public address but at {addresses[0]}; --allow-private lets it in")
        for address in allowed[:MAX_ADDRESSES]:
            try:
                inner = super().connect_tcp(address, port, _left(timeout), local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failed = error
            else:
                self._open.add(inner)
                return _Stream(inner, self._open)
        raise failed

    def cut(self) -> None:
        for stream in list(self._open):
            with contextlib.suppress(OSError):  # closed meanwhile
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def _resolve(host: str, port: int) -> list[str]:
    """The addresses of `host`, each once, in the order of preference."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise httpcore2.ConnectError(f"the name {host} cannot be looked up now") from None
        raise PictureError(f"no host {host} ({error.strerror})") from None
    except UnicodeError:
        raise PictureError(f"{host} is no host name") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _Stream(httpcore2.NetworkStream):
    """A connection whose steps together keep to the thread's limit."""

    def __init__(self, inner: httpcore2.NetworkStream, registry: set[httpcore2.NetworkStream]) -> None:
        self._inner = inner
        self._registry = registry

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(timeout))

    def close(self) -> None:
        self._registry.discard(self._inner)
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        self._registry.discard(self._inner)
        self._inner = self._inner.start_tls(ssl_context, server_hostname, _left(timeout))
        self._registry.add(self._inner)
        return self

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
