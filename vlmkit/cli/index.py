"""The command index."""

import gc
import os
import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from vlmkit.cli.options import Common, Errors, Format, Ignore, IndexName, Json, option
from vlmkit.cli.screen import Name, Rows, for_person, print_facts
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.terminal import Failures, Output, progress, stdin_is_pipe, stdin_is_terminal, warn

if TYPE_CHECKING:
    from pathlib import Path

    from vlmkit.index import Writer
    from vlmkit.index.moved import Moves
    from vlmkit.index.prune import Lost
    from vlmkit.index.updates import Updates
    from vlmkit.io.records import Record
    from vlmkit.io.summary import Summary

COLLECTED = 50_000  # records hold no cycles; looking for some took a tenth of the time


Files = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE",
        help="Embedded records: JSONL, safetensors, the folder of embed --out-dir.",
        show_default=False,
    ),
]
Several = list[str] | None
TO_HELP = "Copy all records to qdrant:URL/COLLECTION, or qdrant:FOLDER/COLLECTION; again: what changed."
TYPE_HELP = "auto, flat (exact), hnsw, ivf, ivfpq, or a FAISS factory string."


def _several(spec: str, help: str) -> Any:
    return option(spec, f"{help}; may be repeated.", show_default=False)


@dataclass(frozen=True, slots=True)
class Changes:
    """What is done to the index beside adding records."""

    title: ClassVar[str] = "Changing the index"
    type: Annotated[str | None, option("--type TYPE", TYPE_HELP)] = None
    remove: Annotated[Several, _several("--remove ID", "Drop the record with this id")] = None
    prune: Annotated[Several, _several("--prune DIR", "Drop records under DIR whose file is gone")] = None
    force: Annotated[
        bool,
        option(
            "--force",
            "Prune also where a drive may not be mounted, a tar is damaged, or most records under DIR would go.",
            needs=["prune"],
        ),
    ] = False
    dry_run: Annotated[
        bool, option("--dry-run", "prune: write the records that would go, and change nothing.", needs=["prune"])
    ] = False
    merge: Annotated[Several, _several("--merge INDEX", "Add all records of another index")] = None

    def read_standard_input(self) -> bool:
        """Whether records may come beside this, where no file is named."""
        alone = (self.prune or self.type) and stdin_is_terminal()
        return not (self.remove or self.merge or alone)


@dataclass(frozen=True, slots=True)
class Reports:
    """What is printed of the index."""

    title: ClassVar[str] = "Looking at the index"
    info: Annotated[bool, option("--info", "Print what the index holds, as one JSON object.")] = False
    verify: Annotated[bool, option("--verify", "Check the index; exit code 2 if it is damaged.")] = False
    dump: Annotated[bool, option("--dump", "Write every record with its embedding.")] = False
    to: Annotated[str | None, option("--to STORE", TO_HELP)] = None
    form: Annotated[
        Format | None, option("--format", "Form of --dump.", needs=["dump"], show_default="as the name of -o says")
    ] = None
    output: Annotated[
        str | None,
        option("-o, --output FILE", "Write to FILE, whole or not at all.", needs=["dump", "info", "dry_run"]),
    ] = None


def index(
    run: Common,
    changes: Changes,
    reports: Reports,
    files: Files = None,
    index: IndexName = "default",
    errors: Errors = None,
    ignore: Ignore = None,
    json: Json = False,
) -> Exit:
    """Add embedded records to an index, or look after it.

    A record replaces the one with the same `id`; vectors of another model are refused. One without an embedding, as
    from caption or ask, adds its fields to the record with its id; what is known of the file stays. Saved every 10,000
    records or 10 seconds, each save complete or absent. Up to 256 MB are searched exactly; above that, or with --type,
    an approximate index gives the candidates for exact cosines. --remove ends with 1 if it found none of the ids, 3 if
    not all.
    """
    from vlmkit.index import Index, Writer, index_folder
    from vlmkit.index.maintenance import change_type, maintain
    from vlmkit.index.moved import Moves
    from vlmkit.index.prune import check_folders
    from vlmkit.index.store import exists, silent
    from vlmkit.index.updates import Updates
    from vlmkit.index.words import LEFT, catch_up
    from vlmkit.io.inputs import check_outputs

    _check_flags(files, changes, reports)
    check_outputs(files or [], reports.output, errors)
    folder = index_folder(index)
    if reports.to is not None:
        return _copy(run, folder, reports.to)
    if reports.dump or reports.info or reports.verify:
        return _report(folder, reports, json)
    if changes.prune and not changes.force:
        check_folders(changes.prune)
    if changes.dry_run:
        return _report_lost(folder, changes.prune or [], changes, reports, json)
    reads = bool(files) or changes.read_standard_input()
    if not reads and not changes.merge:
        with Index(folder):  # there must be one
            pass
    code = Exit.OK
    on_wait = silent if run.quiet else cache(warn)  # once
    summary = run.summary(target=f"in {folder}")
    with (
        Failures(errors, ignore=ignore, summary=summary) as failures,
        Writer(folder, changes.type, on_wait) as writer,
        ExitStack() as others,
    ):
        before = writer.state.type if writer.state else "auto"
        writer.merge([others.enter_context(Index(index_folder(name))) for name in changes.merge or []])
        moves, updates = Moves(), Updates(writer)
        if reads:
            _add(run, writer, files or [], failures, moves, updates)
        writer.commit()
        _report_moved(run, moves.settle(writer))
        _report_former(run, moves.drop_former(writer))
        if updates.updated:
            _report_count(summary, len(updates.updated), "updated", "by records without a vector of their own")
        _report_replaced(run, writer)
        if changes.remove:
            code = _remove(writer, changes.remove)
        if changes.prune and exists(folder):
            pruned, of_prune = _prune(writer, changes.prune, force=changes.force)
            code = of_prune or code
            _report_count(summary, pruned, "pruned", "their files are gone")
    if exists(folder) and changes.type is not None:
        change_type(folder, changes.type, before, on_wait)
    elif exists(folder):
        maintain(folder, on_wait=on_wait)
    if exists(folder):
        catch_up(folder, LEFT)
    return code or failures.exit_code()


def _check_flags(files: list[str] | None, changes: Changes, reports: Reports) -> None:
    """Raise VlmkitError for flags that contradict each other or do nothing."""
    changed = {"FILE": files} | {f"--{name}": getattr(changes, name) for name in ("type", "remove", "prune", "merge")}
    changing = [name for name, value in changed.items() if value is not None and value != []]
    reporting = [f"--{name}" for name in ("dump", "info", "verify", "to") if getattr(reports, name)]
    if changing and reporting:
        raise VlmkitError(f"{reporting[0]} changes nothing, so it excludes {changing[0]}", "run one after the other")
    for alone in ("--dump", "--to"):
        if alone in reporting and reporting != [alone]:
            (other, *_) = (name for name in reporting if name != alone)
            raise VlmkitError(f"{alone} excludes {other}", "run one after the other")
    if "FILE" in changing and ("--remove" in changing or "--merge" in changing):
        flag = "--remove" if "--remove" in changing else "--merge"
        raise VlmkitError(
            f"{flag} cannot be combined with files of records", f"repeat it for each one: {flag} A {flag} B"
        )
    if changes.dry_run and changing != ["--prune"]:
        (other, *_) = (name for name in changing if name != "--prune")
        raise VlmkitError(f"--dry-run excludes {other}", "run one after the other")


def _report(folder: "Path", reports: Reports, json: bool) -> Exit:
    from vlmkit.index import Index
    from vlmkit.index.verify import verify

    if reports.form not in (None, Format.JSONL) and for_person(reports.output):
        raise VlmkitError(f"{reports.form.value} data cannot be written to a terminal", "use -o FILE or a pipe")
    with Index(folder) as opened, Output(reports.output) as out:
        if reports.verify:
            verify(opened)
        if reports.info and for_person(reports.output, json):
            _print_info(opened.info())
        elif reports.info:
            out.write_records([opened.info()])
        if reports.dump:
            out.write_records(opened.dump(), reports.form and reports.form.value)
    return Exit.OK


def _copy(run: Common, folder: "Path", to: str) -> Exit:
    """Copy the index into a vector store, and tell how many records were put in, were there, and are there now."""
    from vlmkit.index import Index
    from vlmkit.index.vector_stores.base import load_store
    from vlmkit.index.vector_stores.copying import Copied, copy

    store_class, address = load_store(to)
    with Index(folder) as index, store_class.create(address, index.model, index.dim) as store:
        copied, count = Copied(), len(index)
        for _ in progress(copy(index, store, copied), quiet=run.quiet, unit="records", count=lambda: count):
            pass
    if not run.quiet:
        done = f"{copied.added:,} records added, {copied.changed:,} replaced, {copied.kept:,} there already"
        warn(f"{done}: {to} holds {copied.total:,}")
    if (others := copied.total - count) > 0:
        warn(f"{others:,} records of {to} are not in this index: they were left there")
    return Exit.OK


def _print_info(info: "Record") -> None:
    from vlmkit.download.run import amount

    named = {"dim": "numbers in a vector", "count": "records", "bytes": "size"}
    print_facts({named.get(name, name): amount(v) if name == "bytes" else v for name, v in info.items()})


def _add(
    run: Common, writer: "Writer", files: list[str], failures: Failures, moves: "Moves", updates: "Updates"
) -> None:
    from vlmkit.index.moved import is_in_place
    from vlmkit.io.inputs import read_inputs
    from vlmkit.io.reading import Item, Reading
    from vlmkit.io.shards import outputs_of

    for name in files:
        if os.path.isdir(name) and not outputs_of(name):
            remedy = f"vlmkit embed {shlex.quote(name)} | vlmkit index"
            raise VlmkitError(f"{name} is a folder of pictures, not of records", remedy)
    gc.set_threshold(COLLECTED)
    items = read_inputs(files, Reading(together=is_in_place))
    parts = ((item.block or item.record) if isinstance(item, Item) else item for item in items)
    taken = writer.add_all(updates.completed(parts), moves.note)
    no_bar = run.quiet or (set(files) <= {"-"} and stdin_is_pipe())  # what writes into the pipe has one
    for _ in failures.filter_failures(progress(taken, quiet=no_bar, unit="records")):
        pass


def _report_moved(run: Common, count: int) -> None:
    if count and not run.quiet:
        warn(f"{count} {'record' if count == 1 else 'records'} followed files to new names")


def _report_former(run: Common, count: int) -> None:
    if count and not run.quiet:
        what = f"{count} {'record' if count == 1 else 'records'} dropped"
        warn(f"{what}: pages or frames that their files no longer have")


def _report_count(summary: "Summary | None", count: int, what: str, why: str) -> None:
    if summary and summary.whole:
        summary.counts[what] = count
    elif summary:
        done = f"1 record {what}" if count == 1 else f"{count} records {what}"
        warn(f"{done}: {why}" if count else done)


def _report_replaced(run: Common, writer: "Writer") -> None:
    if writer.replaced and not run.quiet:
        count, first = len(writer.replaced), writer.replaced[0]
        what = f"{count} records replaced others of the same id that are about another picture or text, such as {first}"
        warn(f"{what}: give each one an id of its own, or none")
    if writer.lost and not run.quiet:
        what = f"{writer.lost} {'record' if writer.lost == 1 else 'records'} replaced others"
        warn(f"{what} that had a caption, an answer or ocr: add these again, or embed only what is --changed")


def _remove(writer: "Writer", ids: list[str]) -> Exit:
    removed = set(writer.remove([(key, None) for key in ids]))
    missing = [key for key in dict.fromkeys(ids) if key not in removed]
    for key in missing:
        warn(f"{key}: no record in the index has this id: check it with --dump")
    return Exit.OK if not missing else Exit.SOME_FAILED if removed else Exit.NOTHING_FOUND


def _prune(writer: "Writer", folders: list[str], *, force: bool) -> tuple[int, Exit]:
    """Drop the records that lost their file; how many these were, and the exit code."""
    from vlmkit.index import Index
    from vlmkit.index.prune import lost_records

    with Index(writer.folder) as index:
        lost = lost_records(index, folders, force=force)
    for name in lost.without:
        warn(f"no record in the index lies under {name}: name the folder by the path it was embedded by")
    removed = writer.remove(lost.rows) if lost.rows else []
    return len(removed), _report_unread(lost, force=force)


def _report_unread(lost: "Lost", *, force: bool) -> Exit:
    if force:
        return Exit.OK
    for container, count in lost.unread.items():
        warn(f"{container} could not be read whole: {count} of its records kept, restore the file or pass --force")
    return Exit.SOME_FAILED if lost.unread else Exit.OK


def _report_lost(folder: "Path", folders: list[str], changes: Changes, reports: Reports, json: bool) -> Exit:
    """Write the records that --prune would drop."""
    from vlmkit.index import Index
    from vlmkit.index.prune import lost_records

    with Index(folder) as index, Output(reports.output) as out:
        lost = lost_records(index, folders, force=changes.force)
        if for_person(reports.output, json):
            rows = Rows(out, (0,))
            for key, _ in lost.rows:
                rows.add(Name(key))
            warn(f"{len(lost.rows)} records would go: their files are gone")
        else:
            for _, line in lost.rows:
                out.write(line or b"")
    return _report_unread(lost, force=changes.force)
