"""Many inputs, each of which gives one output in a folder: named by patterns, dealt out, done once, retried alone."""

import glob
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from vlmkit.errors import VlmkitError
from vlmkit.io.files import atomic_write
from vlmkit.io.sources import is_remote, is_url

RUN, SUMMARY, DONE = "_run.json", "_summary.json", "_DONE"
UNFINISHED = "_unfinished"  # the folder of outputs that are being written
COUNTS = "_counts"  # the folder of what each shard gave
MOST = 1_000_000  # shards
SEEN_SECONDS = 65.0  # after which NFS looks again whether a file is there


class Part(NamedTuple):
    """Part `number`, counted from 1, of `total` parts."""

    number: int = 1
    total: int = 1

    @classmethod
    def of(cls, text: str) -> "Part":
        """`3/16`. Raises VlmkitError."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        part = cls(*map(int, found.groups())) if found else cls(0)
        if not 1 <= part.number <= part.total:
            raise VlmkitError(f"--shard {text} is not a part I/N, counted from 1", "write for example --shard 3/16")
        return part

    def deal(self, shards: list[Any]) -> list[Any]:
        """Every `total`-th of `shards`."""
        return shards[self.number - 1 :: self.total]


def expand_shards(names: Iterable[str], *, lists: bool = True) -> list[str]:
    """The shards that patterns stand for, in order: braces as in x-{000..999}.tar, globs, and `lists` of names (.txt).

    Raises VlmkitError for a glob that meets nothing, a list that cannot be read, and a shard that is named twice.
    """
    shards = [shard for name in names for shard in _expand(name, lists)]
    for name, count in Counter(shards).items():
        if count > 1:
            raise VlmkitError(f"the shard {name} is named twice", "name it once")
    return shards


def _expand(name: str, lists: bool) -> list[str]:
    is_list = lists and name.endswith(".txt") and os.path.isfile(name)
    if os.path.lexists(name) and not is_list:
        return [name]
    if is_list:
        try:
            lines = Path(name).read_text().splitlines()
        except (OSError, ValueError) as error:
            raise VlmkitError(f"{name} is not a list of shards ({error})", "write one name a line") from None
        return [shard for line in lines if line.strip() for shard in _expand(line.strip(), lists)]
    return [shard for one in expand_braces(name) for shard in _globbed(one)]


def expand_braces(name: str) -> list[str]:
    """The names that one with braces stands for, as in x-{000..999}.tar; what is there stands for itself.

    Raises VlmkitError where they are too many.
    """
    if os.path.lexists(name):
        return [name]
    from bracex import ExpansionLimitException, expand

    try:
        return expand(name, limit=MOST)
    except ExpansionLimitException:
        raise VlmkitError(f"{name} stands for more than {MOST:,} shards", "name fewer") from None


def _globbed(name: str) -> list[str]:
    if is_url(name) or not glob.has_magic(name) or os.path.lexists(name):
        return [name]
    if is_remote(name):
        from vlmkit.io.stream import glob_remote

        found = glob_remote(name)
    else:
        found = sorted(glob.glob(name, recursive=True))
    if not found:
        raise VlmkitError(f"no shard is called {name}", "check the pattern")
    return found


def output_names(shards: list[str]) -> dict[str, str]:
    """A file name without suffix for each of `shards`: its own, with those of its folders where that is not enough."""
    parts = {shard: _folders(shard) for shard in shards}
    depth = 1
    while True:
        names = {shard: "-".join(path[-depth:]).rsplit(".", 1)[0] or path[-1] for shard, path in parts.items()}
        if len(set(names.values())) == len(names):
            return names
        if depth > max(map(len, parts.values())):
            twice = next(name for name, count in Counter(names.values()).items() if count > 1)
            raise VlmkitError(f"two shards would be written as {twice}", "rename one, or write them to two folders")
        depth += 1


def _folders(shard: str) -> list[str]:
    path = shard.partition("?")[0].partition("://")[2] if is_remote(shard) else shard
    return [part for part in re.split(r"[/#]+", path) if part not in ("", ".", "..")]


@dataclass(frozen=True, slots=True)
class ShardFolder:
    """The folder of the outputs, one a shard with the `suffix`, and of what is known about them."""

    folder: Path
    suffix: str

    def make(self) -> None:
        """Make the folder, or take one that is empty or was made so. Raises VlmkitError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            others = [name for name in os.listdir(self.folder) if not name.startswith("_")]
            if others and not (self.folder / RUN).exists():
                what = f"{self.folder} is not empty, and no folder of --out-dir"
                raise VlmkitError(what, "name another folder")
            for name in (UNFINISHED, COUNTS):
                (self.folder / name).mkdir(exist_ok=True)
        except OSError as error:
            raise VlmkitError(f"{self.folder} cannot be used ({error})", "name another folder") from None

    def beats(self) -> Path:
        """A folder for what workers write to show that they are there."""
        folder = self.folder / UNFINISHED / "beats"
        folder.mkdir(exist_ok=True)
        return folder

    def open(self, settings: dict[str, Any]) -> None:
        """Note the `settings`, or see that they are those of then. Raises VlmkitError."""
        file = self.folder / RUN
        try:
            if file.exists():
                found = orjson.loads(file.read_bytes())
                if found != (wanted := orjson.loads(orjson.dumps(settings))):
                    names = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
                    what = f"{self.folder} was made with another {', '.join(names)}"
                    raise VlmkitError(what, "name another folder, or give the same options as then")
            else:
                _write(file, settings)
        except (OSError, ValueError) as error:
            raise VlmkitError(f"{self.folder} cannot be used ({error})", "name another folder") from None

    def output(self, name: str) -> Path:
        return self.folder / f"{name}{self.suffix}"

    def errors(self, name: str) -> Path:
        return self.folder / f"{name}.errors.jsonl"

    def unfinished(self, name: str) -> Path:
        return self.folder / UNFINISHED / f"{name}{self.suffix}"

    def finish(self, name: str, counts: dict[str, Any]) -> None:
        """The unfinished output becomes the output of the shard `name`, which gave so many records."""
        if not counts["failed"]:
            self.errors(name).unlink(missing_ok=True)
        _write(self.folder / COUNTS / f"{name}.json", counts)
        os.replace(self.unfinished(name), self.output(name))

    def finish_all(self, names: list[str]) -> dict[str, Any] | None:
        """What all shards gave together, once all are there; it is written down, with the mark that all is done."""
        if not all(self.output(name).exists() for name in names):
            for file in (DONE, SUMMARY):
                (self.folder / file).unlink(missing_ok=True)
            return None
        total: Counter[str] = Counter()
        for name in names:
            total.update(orjson.loads((self.folder / COUNTS / f"{name}.json").read_bytes()))
        summary = {"shards": len(names), **total}
        _write(self.folder / SUMMARY, summary)
        shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)  # what was killed left it there
        (self.folder / DONE).touch()
        return summary


def _write(file: Path, value: dict[str, Any]) -> None:
    with atomic_write(file) as out:
        out.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def appears(path: Path) -> bool:
    """Whether a file that another machine wrote is there, as soon as this one sees it."""
    begun = time.monotonic()
    while not path.exists():
        if time.monotonic() - begun > SEEN_SECONDS:
            return False
        time.sleep(0.5)
    return True


def is_done(folder: str) -> bool:
    """Whether all shards of a folder have an output."""
    return os.path.exists(os.path.join(folder, DONE))


def outputs_of(folder: str) -> list[str]:
    """The outputs in a folder of shards, by name; empty for another folder."""
    if not os.path.isfile(os.path.join(folder, RUN)):
        return []
    names = sorted(name for name in os.listdir(folder) if not name.startswith("_") and ".errors." not in name)
    return [os.path.join(folder, name) for name in names if name.endswith((".jsonl", ".safetensors", ".parquet"))]
