"""A server on the loopback address that serves files with ranges, and behaves as servers do on bad days.

`/fault/rest` serves `/rest` with that fault: `server.faults` names those to come, each for so many answers.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Faulty(ThreadingHTTPServer):
    """`files` by path; `faults` by path: a fault and for how many answers; `sent` counts the bytes of each path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, tuple[str, int]] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.hits: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.most: Counter[str] = Counter()  # answers under way at once
        self.under_way: Counter[str] = Counter()
        self.slow = 0.0  # seconds between two pieces of 64 KiB
        self.over = threading.Event()
        self.lock = threading.Lock()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        pass  # clients that had enough


@contextmanager
def serving() -> Iterator[Faulty]:
    with Faulty() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faulty

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        with self.server.lock:
            self.server.hits[path] += 1
            self.server.under_way[path] += 1
            self.server.most[path] = max(self.server.most[path], self.server.under_way[path])
            fault, left = self.server.faults.get(path, ("none", 0))
            if left:
                self.server.faults[path] = (fault, left - 1)
        try:
            self._serve(path, fault if left else "none")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.under_way[path] -= 1

    def _serve(self, path: str, fault: str) -> None:
        data = self.server.files.get(path)
        if fault in ("429", "500", "503", "403"):
            return self._answer(int(fault), b"", {"Retry-After": "1"} if fault in ("429", "403") else {})
        if fault == "busy for long":
            return self._answer(429, b"", {"Retry-After": "3600"})
        if fault == "loop":
            return self._answer(302, b"", {"Location": path})
        if data is None:
            return self._answer(404, b"nothing here")
        asked = self.headers.get("Range", "")
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        if fault == "no-ranges" or not asked or self.headers.get("If-Range", etag) != etag:
            return self._answer(200, data, {"ETag": etag}, fault)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(data)) + 1, len(data))
        if start >= len(data):
            return self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        shown = f"bytes {start}-{end - 1}/{len(data) + (7 if fault == 'wrong-length' else 0)}"
        self._answer(206, data[start:end], {"Content-Range": shown, "ETag": etag}, fault)

    def _answer(self, code: int, body: bytes, headers: dict[str, str] | None = None, fault: str = "none") -> None:
        path = self.path.partition("?")[0]
        self.send_response(code)
        for name, value in {**(headers or {}), **self.server.headers.get(path, {})}.items():
            self.send_header(name, value)
        if fault == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "chunked":
            return self._send(path, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        if fault == "flipped" and len(body) > 1:
            body = bytes([body[0] ^ 1]) + body[1:]
        if fault == "drip":
            for i in range(len(body)):
                self.wfile.write(body[i : i + 1])
                if self.server.over.wait(0.05):
                    break
        elif fault == "stall" and len(body) > 1:
            self._send(path, body[: len(body) // 2])
            self.server.over.wait(60)
        elif fault == "cut" and len(body) > 1:
            self._send(path, body[: len(body) // 2])
        else:
            return self._send(path, body)
        self.close_connection = True

    def _send(self, path: str, body: bytes) -> None:
        for start in range(0, len(body), 1 << 16):
            piece = body[start : start + (1 << 16)]
            self.wfile.write(piece)
            with self.server.lock:
                self.server.sent[path] += len(piece)
            if self.server.slow and self.server.over.wait(self.server.slow):
                break
        self.wfile.flush()
