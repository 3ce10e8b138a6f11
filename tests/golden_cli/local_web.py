"""A server on the loopback address: one picture, and an endpoint of chat completions that repeats the question."""

import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        from PIL import Image

        data = io.BytesIO()
        Image.new("RGB", (40, 30), "teal").save(data, "PNG")
        found = self.path == "/a.png"
        self._send(200 if found else 404, "image/png" if found else "text/plain", data.getvalue() if found else b"no")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = asked["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        if text.startswith("unknown"):
            error = {"message": "there is no such model", "type": "some_error", "param": None, "code": None}
            return self._send(404, "application/json", json.dumps({"error": error}).encode())
        message = {"role": "assistant", "content": f"heard: {text}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "tiny", "choices": [choice]}
        reply |= {"usage": {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16}}
        return self._send(200, "application/json", json.dumps(reply).encode())

    def _send(self, code: int, kind: str, data: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Clients that end with their command reset their connections."""


def start() -> int:
    """Serve from now on; the port."""
    server = _Server(("127.0.0.1", 0), _Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server.server_port
