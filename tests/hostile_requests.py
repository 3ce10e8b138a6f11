"""A request that a service must survive: what is sent, and the statuses with which it may be answered."""

import json
from typing import Any, NamedTuple

HOST = b"Host: localhost\r\n"
CLOSE = b"Connection: close\r\n"
JSON = b"Content-Type: application/json\r\n"
EMBED, CHAT, SEARCH, CLASSIFY = "/v1/embeddings", "/v1/chat/completions", "/v1/search", "/v1/classify"
COHERE = "/v2/embed"
GOOD = b'{"input": "a"}'
NOTHING = 0  # the connection ends without an answer


class Hostile(NamedTuple):
    """`sent` in pieces, with a pause between them; then the client may close its half, or the whole, at once."""

    name: str
    statuses: tuple[int, ...]
    sent: tuple[bytes, ...]
    half_closed: bool = False
    leaves: bool = False


def post(path: str, body: bytes, head: bytes = JSON) -> bytes:
    length = b"Content-Length: %d\r\n\r\n" % len(body)
    return b"POST " + path.encode() + b" HTTP/1.1\r\n" + HOST + CLOSE + head + length + body


def get(path: str | bytes, head: bytes = b"", method: bytes = b"GET") -> bytes:
    raw = path if isinstance(path, bytes) else path.encode()
    return method + b" " + raw + b" HTTP/1.1\r\n" + HOST + CLOSE + head + b"\r\n"


def asked(status: int | tuple[int, ...], path: str, body: Any, name: str = "") -> Hostile:
    """A request of JSON."""
    text = json.dumps(body)
    statuses = status if isinstance(status, tuple) else (status,)
    return Hostile(name or f"{path} {text[:60]}", statuses, (post(path, text.encode()),))
