"""The command embed."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from vlmkit.cli.command import OPTIONS
from vlmkit.cli.options import EmbedOptions, Format, Inputs, Records, Run, option
from vlmkit.cli.screen import for_person
from vlmkit.cli.shards import ShardOptions, each_shard
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.executor import Lazy
from vlmkit.io.records import unless_failed
from vlmkit.io.shards import expand_shards
from vlmkit.io.terminal import Failures, Output, form_of, progress, warn

if TYPE_CHECKING:
    from vlmkit.index.changed import Kept
    from vlmkit.io.inputs import Item
    from vlmkit.io.records import Failed, Record
    from vlmkit.models.ocr.base import OcrModel
    from vlmkit.models.types import Embedder


Text = Annotated[bool, option("--text", "Lines are texts; of records embed the field text.")]
FORM_HELP = "JSONL; safetensors: smaller, and quicker to read; parquet: for other stores. Default: by the name of -o."
FLOATS_HELP = "The embedding as a list of numbers, not as base64 of float16."
OCR_HELP = "Read what is written in pictures into the field ocr, too, with rapidocr."
Changed = Annotated[
    str | None,
    option(
        "--changed INDEX",
        "Only what is new, or changed since it came into INDEX; if there is no INDEX yet, all.",
    ),
]
DryRun = Annotated[bool, option("--dry-run", "Write only what would be embedded, to standard output; load no model.")]


@dataclass(frozen=True, slots=True)
class Fields:
    """What records hold, and in which form."""

    title: ClassVar[str] = OPTIONS
    format: Annotated[Format | None, option("--format", FORM_HELP, show_default=False)] = None
    floats: Annotated[bool, option("--floats", FLOATS_HELP)] = False
    ocr: Annotated[bool, option("--ocr", OCR_HELP)] = False


def embed(
    run: Run,
    embedder: EmbedOptions,
    records: Records,
    shards: ShardOptions,
    fields: Fields,
    inputs: Inputs = None,
    text: Text = False,
    changed: Changed = None,
    dry_run: DryRun = False,
) -> Exit:
    """Turn pictures and texts into vectors.

    Reads pictures, frames of films, pages of PDF documents, folders, webdataset shards, URLs and records, and writes
    one record each with its vector in `embedding`. Pictures are rotated by EXIF, transparent parts become white, and of
    an animation it is the first frame. One that cannot be read is named, left out, and makes the exit code 3. A vector
    of the same model is kept.

    --changed looks at the content of files whose path, time, size or change time the index does not know. A file that
    was moved, copied or touched gets a record with the fields and the vector of the same content in the index; that of
    one that was moved says so in `moved_from`, and index drops the old record. A URL that is in the index is not
    fetched again.
    """
    shards.check(records, changed=changed, dry_run=dry_run)
    form, floats = fields.format or Format(form_of(records.output)), fields.floats
    if fields.ocr and text:
        raise VlmkitError("--ocr excludes --text", "texts need not be read in pictures")
    if floats and form is not Format.JSONL:
        raise VlmkitError("--floats requires the format jsonl", f"leave out --floats or --format {form.value}")
    load = Lazy(embedder.load, run)
    reader = _ocr_model(run) if fields.ocr and not dry_run else None
    how: dict[str, Any] = {"texts": text, "floats": floats, "allow_private": records.allow_private, "ocr": reader}
    how |= {"batch_size": run.batch_size, "workers": run.threads}
    work = partial(_embed, run=run, load=load, how=how, form=form, changed=changed, dry_run=dry_run)
    if shards.out_dir is None:
        return work(records, records.check(inputs)).exit_code()

    def settings() -> dict[str, Any]:
        made = {"command": "embed", "model": load().identity, "text": text}
        return made | {"format": form.value, "floats": floats} | ({"ocr": reader.identity} if reader else {})

    named = expand_shards(inputs or [], lists=not text)
    return each_shard(run, records, shards, named, f".{form.value}", settings, partial(work, alone=False))


def _embed(
    records: Records,
    paths: list[str],
    *,
    run: Run,
    load: "Callable[[], Embedder]",
    how: dict[str, Any],
    form: Format,
    changed: str | None,
    dry_run: bool,
    alone: bool = True,
) -> Failures:
    """Embed what `paths` stand for, as `how` says; not `alone`: a failure is one of several, told elsewhere."""
    from vlmkit.embed import embed as embedded
    from vlmkit.embed import when_needed
    from vlmkit.index import index_folder
    from vlmkit.index.changed import Contents
    from vlmkit.index.changed import changed as only_changed
    from vlmkit.index.known_parts import KnownParts
    from vlmkit.index.store import exists
    from vlmkit.io.inputs import count_inputs, is_one_picture, read_inputs

    text = how["texts"]
    reading = replace(records.reading(texts=text, one_picture=not text), puts_off_fields=changed is not None)
    contents = Contents()
    needs = ("ocr",) if how["ocr"] else ()
    known = KnownParts(index_folder(changed), contents, needs) if changed is not None else None
    if changed and not paths and os.path.isdir(changed) and not exists(index_folder(changed)):
        warn(f"--changed {changed}: there is no such index, but a folder: name the index, then INPUT (now stdin)")
    reading = replace(reading, known=known)
    summary = run.summary(reading.left_out, brief=not alone, skipped="unchanged")
    items = read_inputs(paths, reading)
    if not dry_run:
        _check_terminal(records, form)
    if summary:
        items, summary.done = summary.reading(items), "would be embedded" if dry_run else summary.done

    def vectorised(items: "Iterable[Item | Failed]", model: "Embedder") -> "Iterator[Record | Failed]":
        return embedded(items, model, **how)

    single_input = alone and (changed is None or list(map(is_one_picture, paths)) == [True])
    output, errors = (None, None) if dry_run else (records.output, records.errors)
    with (
        Failures(errors, single_input=single_input, ignore=records.ignore, summary=summary) as failures,
        Output(output) as out,
    ):
        new = (
            items
            if changed is None
            else only_changed(items, index_folder(changed), partial(_tell_kept, run), contents, needs)
        )
        if dry_run:
            results: Iterator[Record | Failed] = map(unless_failed(_without_vector), new)
        elif changed is None:
            results = vectorised(items, load())
        else:
            results = when_needed(new, lambda some: vectorised(some, load()))
        count = partial(count_inputs, paths, reading) if changed is None else lambda: None
        shown = progress(results, quiet=run.quiet, unit="records", count=count)
        out.write_records(failures.filter_failures(shown), (Format.JSONL if dry_run else form).value)
        if summary and known and known.unchanged:
            summary.counts["films unchanged"] = known.unchanged
        failures.exit_code()
    return failures


def _ocr_model(run: Run) -> "OcrModel":
    from vlmkit.models.resolve import OCR
    from vlmkit.models.types import EndpointOptions

    return run.load_chat_model(OCR, EndpointOptions())  # type: ignore[return-value]


def _check_terminal(records: Records, form: Format) -> None:
    """Raise VlmkitError where vectors would fill a terminal, unless somebody wants to see them."""
    wanted = records.json or records.output == "-"
    if for_person(records.output) and (form is not Format.JSONL or not wanted):
        remedy = "pipe them on (vlmkit embed … | vlmkit index), or use -o FILE"
        raise VlmkitError("vectors are not printed on a terminal", remedy + (" or --json" * (form is Format.JSONL)))


def _tell_kept(run: Run, kept: "Kept") -> None:
    counts = {"moved": kept.moved, "copied or touched": kept.others}
    if any(counts.values()) and not run.quiet:
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        warn(f"{told}: they keep the vectors that the index has")
    for place, count in kept.doubtful.items():
        warn(f"{count} may have moved, but {place}: their old records stay until index --prune DIR --force drops them")


def _without_vector(item: "Item") -> "Record":
    return {name: value for name, value in item.record.items() if name not in ("embedding", "model")}
