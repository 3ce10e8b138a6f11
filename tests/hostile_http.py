"""Hostile requests by what HTTP says: lines, headers, hosts, paths, chunks, connections."""

from collections.abc import Iterator
from itertools import pairwise
from urllib.parse import quote

from hostile_requests import CHAT, CLOSE, EMBED, GOOD, HOST, JSON, NOTHING, Hostile, get, post


def no_http() -> Iterator[Hostile]:
    lines = [b"\r\n\r\n", b"GARBAGE\r\n\r\n", b"\0" * 200 + b"\r\n\r\n", b"\xff" * 200 + b"\r\n\r\n", b"GET\r\n\r\n"]
    lines += [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n" + HOST + CLOSE + b"\r\n",
    ]
    lines += [b"GET /health\r\n\r\n", b"GET /health HTTP/x\r\n" + HOST + b"\r\n", b"SSH-2.0-OpenSSH_9.9\r\n\r\n"]
    lines += [b"GET  /health  HTTP/1.1\r\n" + HOST + b"\r\n", b" GET /health HTTP/1.1\r\n" + HOST + b"\r\n"]
    lines += ["GET /\u00e9 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n"]
    for line in lines:
        yield Hostile(
            f"no HTTP {line[:30]!r}", (400, 421, 200) if b"HTTP/9" in line or b"HTTP/2" in line else (400,), (line,)
        )
    yield Hostile("no HTTP: redis", (NOTHING, 400), (b"*1\r\n$4\r\nPING\r\n",), True)
    yield Hostile(
        "no HTTP: line feeds alone", (200, 400), (b"GET /health HTTP/1.1\nHost: localhost\nConnection: close\n\n",)
    )


def heads() -> Iterator[Hostile]:
    flood = b"".join(b"X-%d: a\r\n" % i for i in range(40_000))
    wrong = [b"X" * 400_000 + b": a\r\n", b"X: " + b"a" * 400_000 + b"\r\n", flood, b": a\r\n", b"X : a\r\n", b"X\r\n"]
    wrong += [
        b"X: a\0b\r\n",
        b"X: a\rb\r\n",
        b"X(): a\r\n",
        b"\0: a\r\n",
        b"Content-Length: 1\r\nContent-Length: 2\r\n",
    ]
    wrong += [
        b"Content-Length: " + length + b"\r\n"
        for length in (b"-1", b"+1", b"1_0", b"0x10", b"1e3", b"\xb2", b"1 1", b"9" * 30)
    ]
    wrong += [b"Transfer-Encoding: gzip\r\n", b"Transfer-Encoding: chunked, chunked\r\n", b"Transfer-Encoding: \r\n"]
    for head in wrong:
        yield Hostile(f"head {head[:40]!r}", (400, 501, 413, 414, 431), (get("/health", head),))
    yield Hostile("many headers", (200,), (get("/health", b"".join(b"X-%d: a\r\n" % i for i in range(900))),))
    yield Hostile("many cookies", (200,), (get("/chat", b"Cookie: " + b"a=b; " * 5000 + b"\r\n"),))
    yield Hostile("length and chunks", (400, NOTHING), (post(EMBED, GOOD, b"Transfer-Encoding: chunked\r\n"),), True)
    yield Hostile("folded", (200, 400), (get("/health", b"X: a\r\n b\r\n"),))
    yield Hostile("expects", (417, 400, 200), (get("/health", b"Expect: the-impossible\r\n"),))
    yield Hostile(
        "upgrade",
        (200,),
        (b"GET /health HTTP/1.1\r\n" + HOST + b"Upgrade: websocket\r\nConnection: upgrade, close\r\n\r\n",),
    )
    yield Hostile(
        "upgrade to h2",
        (200,),
        (b"GET /health HTTP/1.1\r\n" + HOST + b"Upgrade: h2c\r\nConnection: upgrade, close\r\n\r\n",),
    )
    for range_ in (b"bytes=" + b"0-1," * 5000, b"bytes=9" + b"9" * 5000 + b"-", b"bytes=-" + b"9" * 4000, b"bytes=--1"):
        yield Hostile(f"range {range_[:20]!r}", (404,), (get("/original?id=x", b"Range: " + range_ + b"\r\n"),))
    for method in (b"BREW", b"PUT", b"DELETE", b"PATCH", b"TRACE", b"get", b"A" * 3000):
        yield Hostile(f"method {method[:8]!r}", (405,), (get(EMBED, method=method),))
    yield Hostile("CONNECT", (404, 405), (get("localhost:22", method=b"CONNECT"),))


def hosts() -> Iterator[Hostile]:
    names = (
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.",
        "localhost@evil.example",
        "[::1",
        "[::ffff:1.2.3.4]",
    )
    for name in (*names, "127.1.evil.example:80", "0.0.0.0.", "xn--lcalhost-2ya", "a" * 9000, "localhost:80:90", " "):
        sent = b"GET /health HTTP/1.1\r\nHost: " + name.encode() + b"\r\n" + CLOSE + b"\r\n"
        yield Hostile(f"Host {name[:30]}", (421, 400), (sent,))
    yield Hostile("no Host", (400,), (b"GET /health HTTP/1.1\r\n\r\n",))
    yield Hostile("two Hosts", (400,), (get("/health", b"Host: evil.example\r\n"),))
    yield Hostile("HTTP/1.0 without Host", (421,), (b"GET /health HTTP/1.0\r\n\r\n",))
    for origin in (b"http://evil.example", b"null", b"http://localhost.evil.example", b"file://", b"\xff", b"a" * 9000):
        yield Hostile(f"Origin {origin[:30]!r}", (403,), (post(EMBED, GOOD, b"Origin: " + origin + b"\r\n"),))
    yield Hostile(
        "another site", (403,), (get("/health", b"Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n"),)
    )


def paths() -> Iterator[Hostile]:
    climbs = ["/../../../etc/passwd", "/..%2f..%2f..%2fetc%2fpasswd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd"]
    climbs += ["/..%252f..%252fetc/passwd", "/..%c0%af..%c0%afetc/passwd", "/static/../../../../etc/passwd", "/%00"]
    climbs += ["/static/..%2f..%2fview.py", "/static/%2e%2e%2fview.py", "/static/page.css%00.js", "/static/page.css/"]
    climbs += [
        "/..\\..\\windows\\win.ini",
        "/....//....//etc/passwd",
        "/.git/config",
        "/.env",
        "/v1/models/../../etc/passwd",
    ]
    climbs += [
        "/" + "a/" * 12_000,
        "/%",
        "/%zz",
        "/%ff%fe",
        "/;/etc/passwd",
        "file:///etc/passwd",
        "http://evil.example/etc/passwd",
    ]
    for path in climbs:
        yield Hostile(f"path {path[:40]}", (404, 400, 307), (get(path),))
    yield Hostile("a long path", (400, 414, 431), (get("/" + "a" * 600_000),))
    for place in ("/thumbnail", "/large", "/original", "/picture"):
        for key in ("/etc/passwd", "../../etc/passwd", "file:///etc/passwd", "\0", "http://169.254.169.254/"):
            yield Hostile(f"{place} of {key}", (404,), (get(f"{place}?id={quote(key, safe='')}"),))


def chunks() -> Iterator[Hostile]:
    head = b"POST /v1/embeddings HTTP/1.1\r\n" + HOST + CLOSE + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
    good = b"%x\r\n" % len(GOOD) + GOOD + b"\r\n"
    for wrong in (b"zz\r\n", b"-1\r\n", b"0x5\r\nhello\r\n", b"F" * 30 + b"\r\n", b"\r\n", b"5\r\nhelloXX0\r\n\r\n"):
        yield Hostile(f"chunk {wrong[:12]!r}", (400,), (head + wrong,))
    yield Hostile("a chunk of nearly all memory", (NOTHING, 400), (head + b"FFFFFFFFFFFF\r\n" + b"a" * 1000,), True)
    yield Hostile("a long extension", (400,), (head + b"1;" + b"a" * 200_000 + b"\r\n",))
    yield Hostile("one byte a chunk", (200,), (head + b"".join(b"1\r\n%c\r\n" % byte for byte in GOOD) + b"0\r\n\r\n",))
    yield Hostile(
        "a trailer", (200, 400), (head + good + b"0\r\nHost: evil.example\r\nX: " + b"a" * 9000 + b"\r\n\r\n",)
    )
    yield Hostile("a trailer flood", (400, NOTHING), (head + good + b"0\r\n" + b"X: a\r\n" * 20_000,), True)
    yield Hostile(
        "nonsense after the refusal", (421, 400), (head.replace(b"localhost", b"evil"), b"zz\r\n\r\n", b"zz\r\n\r\n")
    )
    yield Hostile("chunks without end", (413,), (head, *[b"%x\r\n" % (1 << 20) + b"a" * (1 << 20) + b"\r\n"] * 34))


def connections() -> Iterator[Hostile]:
    whole = post(EMBED, GOOD)
    health = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"
    stream = post(CHAT, b'{"stream": true, "messages": [{"role": "user", "content": "what is this?"}]}')
    for end in (0, 1, 20, 60, len(whole) - 1):
        yield Hostile(f"half closed after {end}", (NOTHING, 400), (whole[:end],), True)
        yield Hostile(f"left after {end}", (NOTHING,), (whole[:end],), leaves=True)
    yield Hostile("half closed after all", (NOTHING, 200), (whole,), True)
    for sent in (whole, stream, health):
        yield Hostile(f"left without reading {sent[:20]!r}", (NOTHING,), (sent,), leaves=True)
    yield Hostile("left in the answer", (NOTHING,), (stream, b""), leaves=True)
    yield Hostile(
        "byte by byte", (200,), tuple(get("/health")[i:j] for i, j in pairwise(range(len(get("/health")) + 1)))
    )
    yield Hostile("a slow body", (200,), (whole[:-14], *(b"%c" % byte for byte in GOOD)))
    yield Hostile("pipelined", (200,), (health * 200 + get("/health"),))
    yield Hostile("pipelined posts", (200,), (whole.replace(CLOSE, b"") * 10 + get("/health"),))
    yield Hostile("pipelined with garbage", (200,), (health * 3 + b"GARBAGE\r\n\r\n",))
    yield Hostile("smuggled", (200,), (post(EMBED, GOOD) + b"GET /v1/models HTTP/1.1\r\nHost: evil\r\n\r\n",))
    yield Hostile("blank lines before", (200, 400), (b"\r\n" * 3 + get("/health"),))
