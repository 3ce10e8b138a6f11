"""The search for copies, by `vlmkit search --duplicates` in a process of its own, which may take long and be ended."""

import asyncio
import atexit
import contextlib
import glob
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmkit.errors import Exit
from vlmkit.io.records import Record, loads

CHUNK = 1 << 16


@dataclass
class Copies:
    """A search that runs or has ended: its `groups` are the records of `search --duplicates`."""

    number: int
    threshold: float
    path: str
    groups: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    running: bool = True
    failed: bool = False

    @property
    def superfluous(self) -> tuple[int, int]:
        """How many files are copies of those to keep, and the bytes of these."""
        files = [file for group in self.groups for file in group.get("files", ())[1:]]
        return len(files), sum(file.get("bytes", 0) for file in files)


class CopiesSearch:
    """The search for copies in the index at `folder`; one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._task: asyncio.Task[None] | None = None
        self._number = 0
        self.last: Copies | None = None

    def start(self, threshold: float, path: str) -> None:
        """Begin anew, among the pictures whose path contains `path`."""
        self.stop()
        self._number += 1
        self.last = Copies(self._number, threshold, path)
        self._task = asyncio.ensure_future(self._run_to_end(self.last))

    def stop(self) -> None:
        """End a search that runs."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self.last is not None and self.last.running:
            self.last = None

    async def _run_to_end(self, copies: Copies) -> None:
        try:
            await self._run(copies)
        except OSError as error:
            copies.failed = True
            copies.notes.append(f"the search cannot be started: {error.strerror}")
        finally:
            copies.running = False

    async def _run(self, copies: Copies) -> None:
        folder = os.path.abspath(self._folder)
        words = ["search", "--duplicates", "--json", f"--threshold={copies.threshold}", "-i", f"{folder}/"]
        words += [f"--where=image~*{glob.escape(copies.path)}*"] if copies.path else []
        environment = {name: value for name, value in os.environ.items() if name != "VLMKIT_TOKEN"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "vlmkit", *words, stdin=DEVNULL, stdout=PIPE, stderr=PIPE,
            env=environment,
        )  # fmt: skip

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

        atexit.register(kill)
        try:
            assert process.stdout and process.stderr
            await asyncio.gather(
                _lines(process.stdout, lambda line: copies.groups.append(loads(line))),
                _lines(process.stderr, lambda line: copies.notes.append(_said(line))),
            )
            copies.failed = await process.wait() not in (Exit.OK, Exit.NOTHING_FOUND, Exit.SOME_FAILED)
        finally:
            kill()
            await process.communicate()  # its pipes are closed before the event loop is
            atexit.unregister(kill)


async def _lines(stream: asyncio.StreamReader, on_line: Callable[[bytes], Any]) -> None:
    """Calls `on_line` for each line, of whatever length."""
    rest = b""
    while data := await stream.read(CHUNK):
        *lines, rest = (rest + data).split(b"\n")
        for line in filter(None, lines):
            on_line(line)


def _said(line: bytes) -> str:
    return line.decode(errors="replace").removeprefix("vlmkit: ")
