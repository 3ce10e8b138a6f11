"""embed, caption and ask over many shards: one output each, in a folder."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from vlmkit.cli.options import Records, Run, option
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.records import Failed, Record, read_jsonl
from vlmkit.io.shards import Part, ShardFolder, expand_shards, output_names
from vlmkit.io.terminal import Failures, warn

PART_HELP = "Work on part I of N of the shards alone, counted from 1."


@dataclass(frozen=True, slots=True)
class ShardOptions:
    """Where the outputs of many shards go."""

    title: ClassVar[str] = "Shards"
    out_dir: Annotated[
        str | None,
        option("--out-dir DIR", "One output in DIR for each shard of INPUT; those that are there are not made again."),
    ] = None
    shard: Annotated[str | None, option("--shard I/N", PART_HELP, needs=["out_dir"])] = None

    def check(self, records: Records, **others: Any) -> None:
        """Raise VlmkitError for what does not go with --out-dir; `others` are values by the name of their flag."""
        if self.out_dir is None:
            return
        values = {"output": records.output, "errors": records.errors, "ignore": records.ignore, **others}
        if given := next((name for name, value in values.items() if value), None):
            raise VlmkitError(
                f"--{given.replace(chr(95), chr(45))} cannot be combined with --out-dir",
                "each shard has files of its own there",
            )


def each_shard(
    run: Run,
    records: Records,
    shards: ShardOptions,
    inputs: list[str],
    suffix: str,
    settings: dict[str, Any],
    work: Callable[[Records, list[str]], Failures],
) -> Exit:
    """Call `work` for each shard that has no output yet, with the files to write and the shard.

    `settings` decide what is written: a folder holds what was made under one of them. A shard of which not all could be
    read has no output, and is worked on the next time. What failed in it is in its file of errors.
    """
    if not inputs:
        raise VlmkitError("--out-dir needs shards by name", "name them, as in 'x-{000..999}.tar'")
    part = Part.of(shards.shard or "1/1")
    names = output_names(expand_shards(inputs))
    folder = ShardFolder(Path(shards.out_dir or ""), suffix)
    folder.open(settings)
    mine = part.deal(list(names))
    waiting = [shard for shard in mine if not folder.output(names[shard]).exists()]
    begun, failed, some_failed = time.monotonic(), 0, False
    for done, shard in enumerate(waiting, 1):
        why, counts = _one(folder, names[shard], shard, records, work)
        failed += bool(why)
        some_failed |= bool(counts["failed"])
        if why:
            warn(f"{shard}: {why}: no output, it is tried again the next time")
        elif not run.quiet:
            each = (time.monotonic() - begun) / done
            left = _duration(each * (len(waiting) - done))
            numbers = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "nothing"
            warn(f"{shard}: {numbers}; {done:,} of {len(waiting):,} shards, {left} left")
    _tell_end(run, folder, [*names.values()], len(mine) - len(waiting), failed)
    return Exit.SOME_FAILED if failed or some_failed else Exit.OK


def _one(
    folder: ShardFolder, name: str, shard: str, records: Records, work: Callable[[Records, list[str]], Failures]
) -> tuple[str, dict[str, int]]:
    """Why a shard has no output, or nothing, and what it gave."""
    counts = {"written": 0, "failed": 0}
    errors = folder.errors(name)
    files = replace(records, output=str(folder.unfinished(name)), errors=str(errors))
    try:
        failures = work(files, [shard])
    except VlmkitError as error:
        return f"{error.what} ({error.remedy})", counts
    counts = {"written": failures.seen - failures.count, "failed": failures.count}
    if failures.count and any(row["image"] in (shard, os.path.abspath(shard)) for row in _rows(errors)):
        folder.unfinished(name).unlink(missing_ok=True)
        return "it could not be read to its end", counts
    folder.finish(name, counts)
    return "", counts


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
