"""What was read of DATA, kept for later runs and the other processes of one: beside the data, or in the user's cache.

What is kept holds as long as DATA and all pictures have the sizes and times that they had; looking at these is quick.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_hexdigest

from vlmkit.io.files import atomic_folder, explain_no_room, lock, user_folder
from vlmkit.io.records import batched
from vlmkit.io.remote import remote_stamp
from vlmkit.io.sources import is_url
from vlmkit.io.terminal import warn

VERSION = 2  # of the form of what is kept, and of how records are read
FOLDER = ".vlmkit"
STAMPS = "stamps.jsonl"  # of DATA, then of every file that was looked at
THREADS = 16  # on a network drive each look takes its time
AT_ONCE = 512
NEVER = -2, 0  # of a stamp that no file has
NOTED = 1 << 16  # paths that are not noted twice
WAITING = "waiting for another run that reads the same data"
Stamp = list[Any]  # path, size, time in nanoseconds; of a folder the number and a hash of its files


@contextmanager
def kept(names: list[str], settings: list[Any], build: Callable[[Path, "Noted"], None]) -> Iterator[Path]:
    """The folder that `build(folder, noted)` filled for DATA and `settings`, now or before; one at a time.

    Without a place to keep it, such as for standard input, the folder is there for the block alone.
    """
    base = _base(names)
    if base is None:
        with tempfile.TemporaryDirectory(prefix="vlmkit-train-") as name:
            build(Path(name), Noted(Path(name), []))
            yield Path(name)
        return
    with ThreadPoolExecutor(THREADS) as threads:
        stamps = list(threads.map(stamp, [name if is_url(name) else os.path.abspath(name) for name in names]))
    folder = base / f"train-{key_of([VERSION, [found[0] for found in stamps], settings])}"
    with lock(base, on_wait=lambda: warn(WAITING)):
        if not _holds(folder / STAMPS, stamps):
            what = "what was read of the data"
            with explain_no_room(base, what, "free some space"), atomic_folder(folder, replace=True) as made:
                build(made, Noted(made, stamps))
        yield folder


class Noted:
    """The stamps of files that were looked at, on the disk."""

    def __init__(self, folder: Path, stamps: list[Stamp]) -> None:
        self.file = open(folder / STAMPS, "wb")  # noqa: SIM115
        self.note = lru_cache(NOTED)(self._note)
        for found in stamps:
            self.file.write(json.dumps(found).encode() + b"\n")

    def _note(self, path: str) -> None:
        """Note the file, or that there is none. Threads may call it."""
        self.file.write(json.dumps(stamp(path)).encode() + b"\n")

    def note_shard(self, url: str, came: bool) -> None:
        """Note that a file on the web did not come, so that the next run asks for it again."""
        if not came:
            self.file.write(json.dumps([url, *NEVER]).encode() + b"\n")

    def close(self) -> None:
        self.file.close()


def key_of(value: Any) -> str:
    """A name for JSON-like `value`."""
    return xxh3_64_hexdigest(json.dumps(value, sort_keys=True).encode())


def stamp(path: str) -> Stamp:
    if is_url(path):
        return remote_stamp(path)
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return [path, -1, 0]
    if not os.path.isdir(path):
        return [path, found.st_size, found.st_mtime_ns]
    files = sorted(
        os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names if FOLDER not in folder
    )
    return [path, len(files), key_of([stamp(file) for file in files if not os.path.isdir(file)])]


def _holds(path: Path, stamps: list[Stamp]) -> bool:
    """Whether a cache was made of these `stamps`, and all other files are as they were."""
    try:
        with open(path, "rb") as lines, ThreadPoolExecutor(THREADS) as threads:
            if [json.loads(next(lines, b"null")) for _ in stamps] != stamps:
                return False
            return all(threads.map(_all_hold, batched(lines, AT_ONCE)))
    except (OSError, ValueError):
        return False


def _all_hold(lines: list[bytes]) -> bool:
    return all(stamp(found[0]) == found for found in map(json.loads, lines))


def _base(names: list[str]) -> Path | None:
    """The folder of what is kept, beside the first DATA where that can be written to."""
    if not all(is_url(name) or os.path.exists(name) for name in names):  # standard input, members of containers
        return None
    beside = Path(os.path.abspath(names[0])).parent
    for place in (*([] if is_url(names[0]) else [beside / FOLDER]), user_folder("cache") / "train"):
        if place.is_dir() or place.parent != beside or os.access(beside, os.W_OK):
            with suppress(OSError):
                place.mkdir(parents=place.parent != beside, exist_ok=True)
                if os.access(place, os.W_OK):
                    return place
    return None
