"""Twelve hex digits that decide whether two models are the same: a SHA-256 over weights and preprocessing."""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from vlmkit.io.files import atomic_write, user_folder

REMEMBERED = 64  # models


def fingerprint(files: Sequence[Path], settings: bytes = b"") -> str:
    """Twelve hex digits over the names and bytes of `files`, and over `settings`, which are not in a file.

    Cached by path, size and time of the files, so that gigabytes of weights are read once.
    """
    total = hashlib.sha256()
    for file, own in sorted(_digests(files).items(), key=lambda item: item[0].name):
        total.update(f"{file.name} {file.stat().st_size}\n".encode())
        total.update(own)
    total.update(settings)
    return total.hexdigest()[:12]


def _digests(files: Sequence[Path]) -> dict[Path, bytes]:
    """The SHA-256 of each file."""
    key = [[str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns] for f in sorted(files)]
    known = recall("identities.json")
    if (found := known.get(name := orjson.dumps(key).decode())) is None:
        found = {}
        for file in files:
            with file.open("rb") as stream:
                found[str(file.absolute())] = hashlib.file_digest(stream, "sha256").hexdigest()
        remember("identities.json", name, found)
    return {file: bytes.fromhex(found[str(file.absolute())]) for file in files}


def recall(memory: str) -> dict[str, Any]:
    """The values that `remember` stored in the file `memory`, by key; empty where it is missing or damaged."""
    try:
        known = orjson.loads((user_folder("cache") / memory).read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def remember(memory: str, key: str, value: Any) -> None:
    """Store `value` in the file `memory` for later commands; only the newest `REMEMBERED` are kept."""
    path = user_folder("cache") / memory
    known = recall(memory)
    known.pop(key, None)
    newest = dict([*known.items(), (key, value)][-REMEMBERED:])
    with contextlib.suppress(OSError):  # only a cache: the next command finds it out again
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, durable=False) as file:
            file.write(orjson.dumps(newest))
