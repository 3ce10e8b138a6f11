"""An endpoint on the loopback address that speaks the form of chat completions, well and as it should not."""

import base64
import io
import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


class Hosted(ThreadingHTTPServer):
    """What it does is said by the first word of the question: the method `on_WORD` of `_Handler`, or `good`.

    `received` are the bodies, `headers` the headers of all requests, `asked` counts the questions, `most` is how many
    requests were under way at a time; `go` is what some methods wait for.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.asked: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.go = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> "Hosted":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Clients that go away are part of the tests."""


def question(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else next(part["text"] for part in content[::-1] if "text" in part)


def layout(message: dict[str, Any]) -> str:
    """A message with each picture in its place, by its size."""
    content = message["content"]
    if isinstance(content, str):
        return content
    sizes = (f"{one.width}x{one.height}" for one in pictures({"messages": [message]}))
    return " + ".join(part["text"] if part["type"] == "text" else next(sizes) for part in content)


def pictures(body: dict[str, Any]) -> list[Image.Image]:
    """The pictures of a request, each from its data URI."""
    content = body["messages"][-1]["content"]
    found = []
    for part in content if isinstance(content, list) else []:
        if part["type"] == "image_url":
            kind, data = part["image_url"]["url"].split(";base64,")
            found.append(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))
            assert kind == f"data:image/{found[-1].format.lower()}"
    return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hosted

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.body = json.loads(data)
        self.text = question(self.body)
        server = self.server
        with server.lock:
            server.received.append(self.body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.paths.append(self.path)
            server.asked[self.text] += 1
            self.tries = server.asked[self.text]
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            getattr(self, f"on_{self.text.split()[0]}", self.good)()
        except (BrokenPipeError, ConnectionResetError):  # the client had enough
            self.close_connection = True
        finally:
            with server.lock:
                server.now -= 1

    def send(self, data: bytes, code: int = 200, kind: str = "application/json", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content_Type": kind, "Content_Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def say(self, text: str | None, finish: str = "stop", **message: object) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "tiny", "choices": [choice]}
        self.send(json.dumps(reply | {"usage": {"prompt_tokens": 9, "completion_tokens": 7}}).encode())

    def fail(self, code: int, message: str = "no luck", param: str | None = None, **headers: str) -> None:
        error = {"message": message, "type": "some_error", "param": param, "code": None}
        self.send(json.dumps({"error": error}).encode(), code, **headers)

    def on_reply(self) -> None:
        """reply STATUS BODY: that; a BODY that begins with `data:` as a stream."""
        _, status, body = self.text.split(" ", 2)
        kind = "text/event-stream" if body.startswith("data:") else "application/json"
        self.send(f"{body}\n\n".encode(), int(status), kind)

    def on_says(self) -> None:
        """says TEXT, on its first line: that."""
        self.say(self.text.partition(" ")[2].partition("\n")[0])

    def on_crowds(self) -> None:
        """crowds MESSAGE: refused with it where there are more than two pictures."""
        if len(seen := pictures(self.body)) > 2:
            return self.fail(400, self.text.partition(" ")[2])
        self.say(f"saw {len(seen)}")

    def on_limited(self) -> None:
        """The first two tries are refused, with a wait in the body."""
        if self.tries < 3:
            return self.send(b'{"error": {"message": "slow down", "details": [{"retryDelay": "0.3s"}]}}', 429)
        self.good()

    def on_newer(self) -> None:
        """A model that takes neither `max_tokens` nor a schema."""
        if "max_tokens" in self.body:
            return self.fail(400, "'max_tokens' is not supported: use max_completion_tokens")
        if "response_format" in self.body:
            return self.fail(422, "json_schema is not available")
        self.say('{"age": 7}')

    def on_Locate(self) -> None:
        """Asked for numbers, it finds boxes with these."""
        numbers = list(map(int, re.findall(r"-?\d+", self.text.partition(".")[0])))
        found = [{"bbox_2d": numbers[at : at + 4], "label": "it"} for at in range(0, len(numbers), 4)]
        if "every object" in self.text:
            found = [{"bbox_2d": [100, 200, 500, 600], "label": "a cat"}]
        self.say(json.dumps(found) if found else "A cat sits there.")

    def on_Read(self) -> None:
        self.say("a\n\n| b |\n")

    def on_parts(self) -> None:
        self.say([{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}])

    def on_codes(self) -> None:
        said = "\x1b]52;c;cm0=\x07\x1b[31mred\x9b2J"
        if self.body.get("stream"):
            self.server.go.set()
            return self.stream(said)
        self.say(said)

    def on_unended(self) -> None:
        """An error in a stream whose end only the connection's tells."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b'data: {"error": {"message": "overloaded"}}\n\ndata: [DONE]\n\n')

    def good(self) -> None:
        if self.body.get("stream"):
            return self.stream("one ", "two\n", "three")
        self.say(f"heard: {self.text}")

    def stream(self, *pieces: str, whole: bool = True) -> None:
        """The pieces but the first wait for `go`; if not `whole`, the connection is cut behind them."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        said: list[tuple[dict, str | None]] = [({"content": piece}, None) for piece in pieces]
        end: list[tuple[dict, str | None]] = [({}, "stop")] if whole else []
        for number, (delta, finish) in enumerate([({"role": "assistant"}, None), *said, *end]):
            if number > 1:
                assert self.server.go.wait(30)
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            self.wfile.write(f"data: {json.dumps(chunk | {'choices': [choice]})}\n\n".encode())
            self.wfile.flush()
        if whole:
            self.wfile.write(b"data: [DONE]\n\n")

    def on_half(self) -> None:
        self.stream("one ", "two", whole=False)

    def on_garbled(self) -> None:
        self.send(b"data: {nonsense\n\ndata: [DONE]\n\n", kind="text/event-stream")

    def on_Describe(self) -> None:
        self.say("" if self.body["model"] == "mute" else "A cup of coffee on a table. It is hot.")

    def on_meets(self) -> None:
        """meets N …: answers as soon as there have been N requests at a time; the more words follow, the later."""
        _, number, *rest = self.text.split()
        deadline = time.monotonic() + 30
        while self.server.most < int(number) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1 * len(rest))
        self.good()

    def on_drips(self) -> None:
        """A space at a time, which JSON may begin with."""
        self.send(b"", Content_Length="1000")
        while not self.server.go.wait(0.1):
            self.wfile.write(b" ")

    def on_waits(self) -> None:
        self.server.go.wait(30)
        self.good()

    def on_stalls(self) -> None:
        _ = self.tries > 1 or self.server.go.wait(30)
        self.good()

    def on_hangs(self) -> None:
        self.server.go.wait(30)

    def on_busy(self) -> None:
        if self.tries == 1:
            return self.fail(429, "too many requests", Retry_After="1")
        self.good()

    def on_crowded(self) -> None:
        self.fail(429, "too many requests", retry_after_ms="10")

    def on_broken(self) -> None:
        self.send(b"<html><h1>oh no</h1></html>", 500, "text/html", retry_after_ms="10")

    def on_hiccup(self) -> None:
        if self.tries == 1:
            return self.fail(503, retry_after_ms="10")
        self.good()

    def on_cuts(self) -> None:
        """The first try without any byte, the second in the middle of the reply."""
        self.close_connection = True
        if self.tries == 2:
            self.send(b"{", Content_Length="100")
        elif self.tries > 2:
            self.good()

    def on_gone(self) -> None:
        self.close_connection = True

    def on_nonsense(self) -> None:
        self.send(b'{"choices": [{"mess')

    def on_page(self) -> None:
        self.send(b"<html>welcome</html>", kind="text/html")

    def on_empty(self) -> None:
        self.send(b'{"choices": []}')

    def on_number(self) -> None:
        self.send(b"7")

    def on_silent(self) -> None:
        self.say(None)

    def on_refuses(self) -> None:
        self.say(None, refusal="I would rather not")

    def on_filtered(self) -> None:
        self.say("", "content_filter")

    def on_thinks(self) -> None:
        self.say("", "length")

    def on_long(self) -> None:
        self.say("a rocket stands on the", "length")

    def on_unauthorised(self) -> None:
        self.fail(401, f"Incorrect API key provided: {self.headers['Authorization']}")

    def on_forbidden(self) -> None:
        self.fail(403, "not for you")

    def on_unknown(self) -> None:
        self.fail(404, f"The model {self.body['model']} does not exist")

    def on_poor(self) -> None:
        self.fail(402, "no credit")

    def on_moved(self) -> None:
        self.fail(308, Location="http://127.0.0.1:1/elsewhere")

    def on_unsupported(self) -> None:
        self.fail(400, "Unsupported value: 'temperature' does not support 0.0 with this model.", "temperature")

    def on_excessive(self) -> None:
        self.fail(400, "the context is too long", "messages")
