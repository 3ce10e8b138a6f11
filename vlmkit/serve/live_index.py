"""The index of a service, opened again when it changed on disk."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vlmkit.errors import VlmkitError
from vlmkit.index import Index, NoIndex
from vlmkit.io.records import Record
from vlmkit.serve.errors import ApiError

T = TypeVar("T")


class LiveIndex:
    """An index that other processes may change or make at any time; one thread at a time looks into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._index: Index | None = None
        self._seen: object = None

    def look(self, work: Callable[[Index], T]) -> T:
        """`work(index)`, as the index is now. Raises ApiError where there is none."""
        with self._lock:
            self._refresh()
            if self._index is None:
                what = f"there is no index at {self.folder}: make one, vlmkit embed PHOTOS | vlmkit index"
                raise ApiError(404, what, code="no_index")
            return work(self._index)

    def refresh(self) -> int:
        """Open the index again if it changed, and let go of what is gone; how many records there are."""
        with self._lock:
            self._refresh()
            return len(self._index) if self._index else 0

    def record(self, key: str) -> Record | None:
        """The record with that id, or of the picture at that path; None without one, and without an index."""
        try:
            return self.look(lambda index: index.get(key))
        except (ApiError, VlmkitError):
            return None

    def close(self) -> None:
        with self._lock:
            self._replace(None)

    def _refresh(self) -> None:
        now = self._state()
        if now == self._seen and self._index is not None:
            return
        try:
            new: Index | None = Index(self.folder)
        except NoIndex:
            new = None
        self._replace(new)  # the new one is open, so that closing the old one does not write the log into the database
        self._seen = now

    def _replace(self, new: Index | None) -> None:
        if self._index is not None:
            self._index.__exit__(None, None, None)
        self._index = new

    def _state(self) -> object:
        """What differs after every commit."""
        found = []
        for name in ("index.sqlite", "index.sqlite-wal"):
            try:
                file = (self.folder / name).stat()
                found.append((file.st_ino, file.st_size, file.st_mtime_ns) if file.st_size else None)
            except OSError:
                found.append(None)
        return found
