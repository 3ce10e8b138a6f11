"""embed, caption and ask over many shards: one output each, in a folder."""

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, cast

from vlmkit.cli.options import Records, Run, option
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.records import Failed, Record, read_jsonl
from vlmkit.io.shards import Part, ShardFolder, appears, output_names
from vlmkit.io.terminal import Failures, progress, warn

PART_HELP = "Work on part I of N of the shards alone, counted from 1."
RAY_HELP = "By a Ray cluster: of this machine, the one that runs here, or at HOST:PORT; DIR is shared by its nodes."
ALIKE = 3  # shards that fail by the same error, which is then not theirs


@dataclass(frozen=True, slots=True)
class ShardOptions:
    """Where the outputs of many shards go."""

    title: ClassVar[str] = "Shards"
    out_dir: Annotated[
        str | None,
        option("--out-dir DIR", "One output in DIR for each shard of INPUT; those that are there are not made again."),
    ] = None
    shard: Annotated[str | None, option("--shard I/N", PART_HELP, needs=["out_dir"])] = None
    ray: Annotated[str | None, option("--ray local|auto|HOST:PORT", RAY_HELP, needs=["out_dir"])] = None

    def check(self, records: Records, **others: Any) -> None:
        """Raise VlmkitError for what does not go with --out-dir; `others` are values by the name of their flag."""
        if self.out_dir is None:
            return
        values = {"output": records.output, "errors": records.errors, "ignore": records.ignore, **others}
        if given := next((name for name, value in values.items() if value), None):
            flag = "--" + given.replace("_", "-")
            raise VlmkitError(f"{flag} cannot be combined with --out-dir", "each shard has files of its own there")


class Done(NamedTuple):
    """What became of a shard: why it has no output, or nothing; what it gave; what was printed meanwhile elsewhere."""

    shard: str
    why: str
    counts: dict[str, int]
    is_of_all: bool = False  # an error that may not be about this shard alone
    printed: str = ""


@dataclass(frozen=True, slots=True)
class Shards:
    """The work to be done for each shard, of which workers of Ray take a copy.

    `work` is called with the files to write and the shard. `settings` decide what is written: a folder holds what was
    made under one of them.
    """

    folder: ShardFolder
    names: dict[str, str]
    records: Records
    work: Callable[[Records, list[str]], Failures]
    settings: Callable[[], dict[str, Any]]

    def open(self) -> None:
        self.folder.open(self.settings())

    def one(self, shard: str) -> Done:
        """A shard of which not all could be read has no output. What failed in it is in its file of errors."""
        name, counts = self.names[shard], {"written": 0, "failed": 0}
        errors = self.folder.errors(name)
        files = replace(self.records, output=str(self.folder.unfinished(name)), errors=str(errors))
        here = (shard, os.path.abspath(shard))
        try:
            failures = self.work(files, [shard])
        except VlmkitError as error:
            why = f"{error.what.removeprefix(f'{shard}: ')} ({error.remedy})"
            return Done(shard, why, counts, not any(one in error.what for one in here))
        counts = {"written": failures.seen - failures.count, "failed": failures.count}
        why = ""
        if failures.count and any(row["image"] in here for row in _rows(errors)):
            why = "it could not be read to its end"
        elif failures.count == failures.seen > 0:
            why = f"none of its {failures.count:,} records could be used"
        if why:
            self.folder.unfinished(name).unlink(missing_ok=True)
        else:
            self.folder.finish(name, counts)
        return Done(shard, why, counts)

    def elsewhere(self, shard: str) -> Done:
        """As `one`, in a process of a cluster: what it prints comes with the result."""
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            self.open()
            done = self.one(shard)
        return done._replace(printed=printed.getvalue())


def each_shard(
    run: Run,
    records: Records,
    options: ShardOptions,
    shards: list[str],
    suffix: str,
    settings: Callable[[], dict[str, Any]],
    work: Callable[[Records, list[str]], Failures],
) -> Exit:
    """Call `work` for each shard that has no output yet; see `Shards`."""
    from vlmkit.io.stream import check_remote

    if not shards:
        raise VlmkitError("--out-dir needs shards by name", "name them, as in 'x-{000..999}.tar'")
    part = Part.of(options.shard or "1/1")
    names = output_names(shards)
    check_remote(shards)
    folder = ShardFolder(Path(options.out_dir or ""), suffix)
    all_of_them = Shards(folder, names, records, work, settings)
    folder.make()
    mine = part.deal(list(names))
    waiting = [shard for shard in mine if not folder.output(names[shard]).exists()]
    if not (options.ray and waiting):  # else the workers do it, which have the room for the model
        all_of_them.open()
    results = _by_ray(all_of_them, waiting, options.ray) if options.ray else map(all_of_them.one, waiting)
    report = _Report(run, len(waiting))
    shown = progress(results, quiet=run.quiet, unit="shards", count=lambda: len(waiting))
    for done in cast(Iterable[Done], shown):
        report.add(done)
    if not mine and not run.quiet:
        warn(f"part {part.number} of {part.total} has no shards: there are {len(names):,}")
    _tell_end(run, folder, [*names.values()], len(mine) - len(waiting), report.failed)
    return Exit.SOME_FAILED if report.failed or report.lost else Exit.OK


def _by_ray(shards: Shards, waiting: list[str], address: str) -> Iterator[Done]:
    from vlmkit.io.ray_executor import map_by_ray

    for done in map_by_ray(shards.elsewhere, waiting, address, shards.folder.beats()):
        output = shards.folder.output(shards.names[done.shard])
        if not done.why and not appears(output):
            what = f"a worker wrote {output}, which is not there"
            raise VlmkitError(what, "name a folder that all nodes of the cluster share")
        yield done


class _Report:
    """Tells of each shard, and counts those that failed, and the records that did."""

    def __init__(self, run: Run, total: int) -> None:
        self._run, self._total = run, total
        self._begun = time.monotonic()
        self._done, self._written = 0, 0
        self._alike: tuple[str, int] = ("", 0)  # the last error, and how often it came in succession
        self.failed, self.lost = 0, 0

    def add(self, done: Done) -> None:
        """Raises VlmkitError where one error that names no shard came for several shards in succession."""
        for line in filter(None, done.printed.splitlines()):
            warn(line.removeprefix("vlmkit: "))
        self._done += 1
        self.failed += bool(done.why)
        self.lost += done.counts["failed"]
        self._written += done.counts["written"]
        if done.why:
            times = self._alike[1] + 1 if done.is_of_all and done.why == self._alike[0] else 1
            self._alike = done.why, times
            if done.is_of_all and times == ALIKE:
                raise VlmkitError(
                    f"the last {ALIKE} shards failed alike: {done.why}", "then run the same command again"
                )
            warn(f"{done.shard}: {done.why}: no output, it is tried again the next time")
            return
        self._alike = "", 0
        if not self._run.quiet:
            seconds = max(time.monotonic() - self._begun, 1e-3)
            left = _duration(seconds / self._done * (self._total - self._done))
            numbers = ", ".join(f"{count:,} {what}" for what, count in done.counts.items() if count) or "nothing"
            rate = f"{self._written / seconds:.3g} a second, {left} left"
            warn(f"{done.shard}: {numbers}; {self._done:,} of {self._total:,} shards, {rate}")


def _rows(file: Path) -> Iterator[Record]:
    with file.open("rb") as lines:
        for row in read_jsonl(lines, file.name):
            if not isinstance(row, Failed):
                yield row


def _tell_end(run: Run, folder: ShardFolder, names: list[str], before: int, failed: int) -> None:
    summary = folder.finish_all(names)
    if run.quiet:
        return
    parts = [f"shards done before: {before:,}"] if before else []
    parts += [f"shards that failed: {failed:,}"] if failed else []
    if summary:
        numbers = ", ".join(f"{count:,} {what}" for what, count in summary.items())
        parts.append(f"all is done: {numbers}")
    if parts:
        warn(f"{folder.folder}: {'; '.join(parts)}")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
