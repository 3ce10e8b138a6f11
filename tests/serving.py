"""A service in a process of its own, and its client."""

import base64
import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

SECONDS = 120
ADDRESS = re.compile(r"at (http://\S+);")


class Served:
    """A running `vlmkit serve`, started in `folder` with a free port unless `arguments` name one.

    `first` is Python that runs in its process before.
    """

    def __init__(self, folder: Path, environment: dict[str, str], *arguments: object, first: str = "") -> None:
        self._said = Path(tempfile.mkstemp(dir=folder, suffix=".log")[1])
        program = ["-c", f"{first}\nfrom vlmkit.__main__ import run\nrun()"] if first else ["-m", "vlmkit"]
        words = [sys.executable, *program, "serve", "--port", "0", *map(str, arguments)]
        with open(self._said, "wb") as said:
            self.process = subprocess.Popen(words, cwd=folder, env=environment, stderr=said)
        end = time.monotonic() + SECONDS
        while (found := ADDRESS.search(self.said())) is None:
            assert self.process.poll() is None and time.monotonic() < end, self.said()
            time.sleep(0.05)
        self.url = found[1]
        self.port = int(self.url.rpartition(":")[2])
        self.client = httpx2.Client(base_url=self.url, timeout=120)

    def said(self) -> str:
        return self._said.read_text()

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return self.client.get(path, headers=_headers(headers))

    def post(self, path: str, body: Any, **headers: str) -> httpx2.Response:
        """JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(path, content=data, headers=_headers(headers))

    def ask(self, path: str, **body: Any) -> Any:
        """The reply to a request that is right."""
        response = self.post(path, body)
        assert response.status_code == 200, response.text
        return response.json()

    def error(self, status: int, path: str, body: Any) -> dict[str, Any]:
        """The error of a request that is refused, in OpenAI's form."""
        response = self.post(path, body)
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error

    def raw(self, data: bytes, seconds: float = 20.0) -> bytes:
        """What comes back for bytes that need not be HTTP, until the service closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), seconds) as connection:
            with contextlib.suppress(OSError):  # it may have had enough before the end
                connection.sendall(data)
            return b"".join(received_until_end(connection))

    def end(self, code: int = 143) -> str:
        """End it by SIGTERM; what it said on standard error."""
        self.client.close()
        self.process.terminate()
        found = self.process.wait(SECONDS)
        assert found == code and "Traceback" not in self.said(), self.said()
        return self.said()


def received_until_end(connection: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            yield data


def _headers(named: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in named.items()}


def data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
