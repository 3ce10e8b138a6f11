"""Hostile requests by their bodies: JSON, values, texts, schemas, pictures, forms."""

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from hostile_requests import CHAT, CLASSIFY, CLOSE, COHERE, EMBED, GOOD, HOST, SEARCH, Hostile, asked, get, post
from PIL import Image
from serving import data_uri


def bodies() -> Iterator[Hostile]:
    deep = b"[" * 100_000
    wrong = [
        b"",
        b" ",
        b"{",
        b"null",
        b"[]",
        b'"a"',
        b"1",
        b"NaN",
        b"Infinity",
        b"{nonsense",
        b"\xff\xfe\x00\x01",
        b"\0" * 100,
    ]
    wrong += ['{"input": "a"}'.encode(kind) for kind in ("utf-16", "utf-32", "utf-8-sig", "utf-7")][:3]
    wrong += [
        b'{"input": "\\ud800"}',
        b'{"input": "\xff"}',
        b'{"input": "\xed\xa0\x80"}',
        b'{"input": "a"} {"input": "b"}',
    ]
    wrong += [
        b'{"input": ' + deep + b"]" * 100_000 + b"}",
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        deep,
        b'{"input": 1e999}',
    ]
    wrong += [
        b'{"input": [' + b"[]," * 100_001 + b"[]]}",
        b'{"a": "' + b"," * 100_001 + b'"}',
        b"---\ninput: a\n",
        b"<input/>",
    ]
    wrong += [
        gzip.compress(bytes(5_000_000)),
        b'{"input": ' + b"9" * 5000 + b"}",
        b'{"input": "a\tb\x01"}',
        b"input=a&model=mini",
    ]
    for body in wrong:
        yield Hostile(f"body {body[:24]!r}", (400,), (post(EMBED, body),))
    yield Hostile(
        "a bomb as an encoding",
        (400, 415),
        (post(EMBED, gzip.compress(bytes(9_000_000)), b"Content-Encoding: gzip\r\n"),),
    )
    for kind in (b"text/plain", b"application/xml", b"multipart/form-data", b"\xff", b"a" * 9000):
        yield Hostile(
            f"content type {kind[:20]!r}", (200, 415), (post(EMBED, GOOD, b"Content-Type: " + kind + b"\r\n"),)
        )
    for size in (b"33554433", b"9999999999", b"9" * 18):
        sent = b"POST /v1/embeddings HTTP/1.1\r\n" + HOST + CLOSE + b"Content-Length: " + size + b"\r\n\r\n"
        yield Hostile(f"{size!r} bytes", (413,), (sent,))
    yield Hostile("more than it said", (200,), (post(EMBED, GOOD) + b"a" * 100_000,))
    yield Hostile("a body of a GET", (200,), (get("/health", b"Content-Length: 5\r\n") + b"hello",))


def values() -> Iterator[Hostile]:
    for body in (
        {},
        {"input": None},
        {"input": []},
        {"input": {}},
        {"input": [{}]},
        {"input": [None]},
        {"input": True},
        {"input": ["a", ""]},
    ):
        yield asked(400, EMBED, body)
    for more in (
        {"dimensions": 0},
        {"dimensions": 1e300},
        {"encoding_format": "int8"},
        {"modality": "smell"},
        {"model": 5},
        {"model": {}},
    ):
        yield asked(400, EMBED, {"input": "a"} | more)
    yield asked(404, EMBED, {"input": "a", "model": "../../etc/passwd"})
    yield asked(404, EMBED, {"input": "a", "model": "a" * 100_000})
    yield asked(200, EMBED, {"input": "a"} | {f"x{i}": 1 for i in range(3000)}, "settings that nobody knows")
    yield asked(200, SEARCH, {"query": "a", "k": 3.0, "offset": 1.0})
    yield asked(200, CLASSIFY, {"input": {"text": "a"}, "labels": ["a", "b"], "k": 1.0})
    for more in (
        {"k": 0},
        {"k": -1},
        {"k": 1e9},
        {"k": True},
        {"offset": -1},
        {"offset": 1e18},
        {"min_score": "a"},
        {"like": "\0"},
    ):
        yield asked(400, SEARCH, {"query": "a"} | more)
    for query in ("", [], ["", " "], {}, "9" * 400 + ":a", ["a"] * 300, "a" * 1_100_000):
        yield asked(400, SEARCH, {"query": query})
    conditions = [
        "",
        "width",
        "=1",
        "width>",
        '"=1',
        ".".join("a" * 2500) + "=1",
        "a" * 5000 + "=1",
        ["width>1"] * 5000,
    ]
    for where in (*conditions, "' OR 1=1; DROP TABLE records;--", {"a" * 9: [1]}, 5, {f"a{i}": 1 for i in range(100)}):
        yield asked((400, 200) if where == "width>" else 400, SEARCH, {"query": "a", "where": where})
    for where in ("image~" + "*a" * 500 + "b", "image~" + "[!" * 500, "width>" + "9" * 4000):
        yield asked(200, SEARCH, {"query": "a", "where": where})
    labels = ["a", "b"]
    for more in (
        {"labels": []},
        {"labels": [" "]},
        {"labels": ["a"] * 300 + [str(i) for i in range(5000)]},
        {"template": "a"},
        {"template": []},
    ):
        yield asked(400, CLASSIFY, {"input": {"text": "a"}, "labels": labels} | more)
    yield asked(
        400, CLASSIFY, {"input": {"text": "a"}, "labels": [str(i) for i in range(400)], "template": "{}" + "a" * 9000}
    )
    yield asked(200, CLASSIFY, {"input": {"text": "a"}, "labels": labels, "template": "{0.__class__} {x} {}"})
    yield asked(400, COHERE, {"texts": ["a"], "images": ["b"]})
    yield asked(400, COHERE, {"images": ["AAAA"] * 300}, "too many pictures")


def texts() -> Iterator[Hostile]:
    for text in (
        "\0\0\0",
        "\u202e\u200b" * 1000,
        "e\u0301" * 5000,
        "\U0001f469\u200d" * 2000,
        "a" * 50_000,
        "<|endoftext|>" * 100,
    ):
        yield asked(200, EMBED, {"input": text}, f"text {text[:3]!r}")
    yield asked(400, EMBED, {"input": "a" * 1_100_000}, "a text of a book")
    yield asked(400, EMBED, {"input": ["a " * 300] * 2000}, "texts of a book")
    yield asked(400, EMBED, {"input": ["a"] * 2049}, "2,049 texts")
    yield asked(400, EMBED, {"input": [[1, 2], [3]]}, "tokens")
    question = [{"role": "user", "content": "what is this?"}]
    long = [{"role": "user", "content": "a " * 20_000}]
    for messages in (
        [],
        "a",
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": []}],
        [{"role": "tool", "content": "a"}],
        long,
    ):
        yield asked(400, CHAT, {"messages": messages}, f"messages {str(messages)[:40]}")
    yield asked(400, CHAT, {"messages": [{"role": "user", "content": "a"}] * 60_000}, "as many messages as words")
    for more in (
        {"n": 5},
        {"max_tokens": 0},
        {"max_tokens": 1e12},
        {"temperature": -1},
        {"top_p": 0},
        {"stop": "a" * 100_000},
        {"stop": ["a"] * 99},
    ):
        yield asked(400, CHAT, {"messages": question} | more)
    for more in (
        {"seed": 10**30},
        {"seed": -(10**15)},
        {"temperature": 1e-300},
        {"top_p": 1e-300, "temperature": 2},
        {"stop": ["", ""]},
    ):
        yield asked(200, CHAT, {"messages": question, "max_tokens": 2} | more)


def schemas() -> Iterator[Hostile]:
    laughs: dict[str, Any] = {"a0": {"type": "object"}}
    laughs |= {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i - 1}"}] * 2} for i in range(1, 40)}
    mutual = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
    wrong: list[Any] = [{"$ref": "#"}, {"$defs": mutual, "$ref": "#/$defs/a"}, {"$defs": laughs, "$ref": "#/$defs/a39"}]
    wrong += [
        {"$ref": "http://169.254.169.254/"},
        {"$ref": "file:///etc/passwd"},
        {"pattern": "(a*)*b"},
        {"type": 5},
        None,
        [],
        "a",
    ]
    wrong += [
        {"properties": {"a": {"patternProperties": {"(a*)*b": {}}}}},
        {"$schema": 5},
        {"properties": {"a": {"$schema": 5}}},
        {"enum": list(range(5000))},
    ]
    for schema in wrong:
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        yield asked(
            400,
            CHAT,
            {"messages": [{"role": "user", "content": "a"}], "response_format": form},
            f"schema {str(schema)[:40]}",
        )


def pictures() -> Iterator[Hostile]:
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "PNG")
    image = small.getvalue()
    wrong = [
        bomb(20_000),
        bomb(2**31 - 1),
        bomb(0),
        image[:40],
        image[:-20],
        b"\x89PNG\r\n\x1a\n",
        b"",
        b"GIF89a" + b"\xff" * 50,
    ]
    wrong += [
        b"\xff\xd8\xff" + bytes(500),
        b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(50),
        b"BM" + b"\xff" * 60,
        b"II*\0" + b"\xff" * 60,
    ]
    wrong += [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999 9999\n(/etc/passwd) run\n",
        b"PK\x03\x04" + bytes(200),
        b"%PDF-1.7\n",
    ]
    wrong += [
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        gzip.compress(bytes(1_000_000)),
    ]
    for data in wrong:
        yield asked(400, EMBED, {"input": [{"image": data_uri(data)}]}, f"picture {data[:16]!r}")
    places = [
        "/etc/passwd",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "/proc/self/environ",
        "/dev/zero",
        "-",
        "\0",
        "a" * 9000,
    ]
    places += [
        "http://127.0.0.1:1/",
        "http://169.254.169.254/latest",
        "http://[::1]/",
        "http://0/",
        "http://2130706433/",
        "http://[::ffff:127.0.0.1]/",
    ]
    places += [
        "http://localhost:1/a.png",
        "ftp://127.0.0.1/a.png",
        "gopher://127.0.0.1/",
        "http://",
        "http://[",
        "http://a:99999/",
        "data:,",
        "data:image/png",
    ]
    places += [
        "file://[",
        "data:image/png;base64,",
        "data:image/png;base64,%%%",
        "data:text/html;base64,PGI+",
        "data:image/png;base64," + "A" * 900_000,
        "javascript:alert(1)",
    ]
    for place in places:
        yield asked(400, EMBED, {"input": [{"image": place}]}, f"picture at {place[:30]!r}")
    yield asked(400, EMBED, {"input": [{"image": "AAAA"}] * 257}, "257 pictures")
    frames = io.BytesIO()
    Image.new("P", (4, 4)).save(
        frames, "GIF", save_all=True, append_images=[Image.new("P", (4, 4), i % 255) for i in range(2000)]
    )
    yield asked(200, EMBED, {"input": [{"image": data_uri(frames.getvalue(), "gif")}]}, "2,000 frames")
    text = zlib.compress(bytes(80_000_000), 9)
    yield asked(
        (200, 400),
        EMBED,
        {"input": [{"image": data_uri(image[:33] + chunk(b"zTXt", b"a\0\0" + text) + image[33:])}]},
        "a bomb of a comment",
    )


def pages() -> Iterator[Hostile]:
    for query in (
        "start=-1",
        "start=" + "9" * 4000,
        "after=" + "9" * 4000,
        "near=nan,nan",
        "near=1e999,0",
        "least=inf&q=a",
        "where=%00",
    ):
        yield Hostile(f"page {query[:30]}", (400,), (get(f"/?{query}"),))
    for query in (
        "q=%ff%fe",
        "q=%00",
        "q=" + "a" * 20_000,
        "&".join(["a=b"] * 5000),
        "q=a&like=%2fetc%2fpasswd",
        "image=..%2f..%2fetc",
    ):
        yield Hostile(f"page {query[:30]}", (200, 400, 404), (get(f"/?{query}"),))
    form = b"Content-Type: application/x-www-form-urlencoded\r\n"
    for path, body in (
        ("/duplicates", b"threshold=nan"),
        ("/duplicates", b"threshold=" + b"9" * 9000),
        ("/duplicates/script", b"go=a" + b"&go=0.1" * 9000),
    ):
        yield Hostile(f"{path} {body[:16]!r}", (400, 409), (post(path, body, form),))
    parts = b'--x\r\nContent-Disposition: form-data; name="picture"; filename="../../a.png"\r\n\r\n'
    multipart = b"Content-Type: multipart/form-data; boundary=x\r\n"
    for body in (
        parts,
        parts + b"no picture\r\n--x--\r\n",
        b"--x\r\n" * 9000,
        b"--x\r\n" + b"A: " + b"b" * 90_000,
        b"",
        parts * 50,
    ):
        yield Hostile(f"upload {body[:10]!r} {len(body)}", (400,), (post("/upload", body, multipart),))
    for boundary in (b"", b"; boundary=", b"; boundary=" + b"x" * 3000, b"; boundary=\xff"):
        yield Hostile(
            f"boundary {boundary[:14]!r}",
            (400,),
            (post("/upload", parts, b"Content-Type: multipart/form-data" + boundary + b"\r\n"),),
        )


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int) -> bytes:
    """A PNG that says it has side x side pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
