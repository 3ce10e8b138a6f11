"""A headless Chromium, steered by the DevTools protocol over a pipe."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "google-chrome", "chromium-browser")
SECONDS = 60.0
KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}


def find_browser() -> str:
    """The browser, or a skip that says how to get one."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no browser: install chromium")
    return found


class Browser:
    """One page in a browser. `problems` are errors of scripts, and what the page's policy refused."""

    def __init__(self, profile: Path) -> None:
        commands, answers = os.pipe(), os.pipe()
        words = [find_browser(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        words += ["--hide-scrollbars", "--no-first-run", "--remote-debugging-pipe", "about:blank"]
        line = f'exec "$@" 3<&{commands[0]} 4>&{answers[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", line, "bash", *words],
            pass_fds=(commands[0], answers[1]),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(commands[0])
        os.close(answers[1])
        self._out, self._in = open(commands[1], "wb", buffering=0), open(answers[0], "rb")  # noqa: SIM115
        self._numbers = itertools.count(1)
        self._answers: dict[int, Any] = {}
        self._changed = threading.Condition()
        self._loaded = 0
        self._session: str | None = None
        self.problems: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM", "Network"):
            self.call(f"{domain}.enable")
        self.look()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.terminate()
        self._process.wait(SECONDS)
        self._out.close()
        self._reader.join(SECONDS)
        self._in.close()

    def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        self._out.write(json.dumps(message).encode() + b"\0")
        with self._changed:
            assert self._changed.wait_for(lambda: number in self._answers, SECONDS), f"{method}: no answer"
            answer = self._answers.pop(number)
        assert "error" not in answer, f"{method}: {answer}"
        return answer["result"]

    def look(self, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        """The size of the window, and the colours that its user prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        with self.leaving():
            assert "errorText" not in self.call("Page.navigate", url=url)

    @contextlib.contextmanager
    def leaving(self) -> Iterator[None]:
        """Waits until another page is loaded."""
        before = self._loaded
        yield
        with self._changed:
            assert self._changed.wait_for(lambda: self._loaded > before, SECONDS), "no other page was loaded"

    def run(self, script: str) -> Any:
        """What a script comes to."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, script: str, seconds: float = SECONDS) -> Any:
        """What a script comes to, once that is something."""
        end = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"never: {script}"
            time.sleep(0.05)
        return found

    def press(self, key: str) -> None:
        code = KEYS.get(key)
        named = {"key": key, "windowsVirtualKeyCode": code} if code else {"key": key, "text": key}
        named |= {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **named)
        self.call("Input.dispatchKeyEvent", type="keyUp", **{k: v for k, v in named.items() if k != "text"})

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, *files: Path) -> None:
        """Choose files in a field."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _read(self) -> None:
        rest = b""
        with contextlib.suppress(OSError, ValueError):
            while data := self._in.read1():
                *messages, rest = (rest + data).split(b"\0")
                for message in messages:
                    self._note(json.loads(message))

    def _note(self, message: dict[str, Any]) -> None:
        with self._changed:
            if "id" in message:
                self._answers[message["id"]] = message
            noted: dict[str, Callable[[Any], Any]] = {
                "Page.loadEventFired": lambda _: setattr(self, "_loaded", self._loaded + 1),
                "Runtime.exceptionThrown": lambda p: self.problems.append(str(p["exceptionDetails"])),
                "Log.entryAdded": lambda p: self._log(p["entry"]),
            }
            noted.get(message.get("method", ""), lambda _: None)(message.get("params"))
            self._changed.notify_all()

    def _log(self, entry: dict[str, Any]) -> None:
        if entry["level"] == "error" and entry["source"] != "network":  # such as 404 for a picture that is gone
            self.problems.append(f"{entry['text']} {entry.get('url', '')}")
