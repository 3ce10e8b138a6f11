"""The command embed."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

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
    from vlmkit.models.types import Embedder


Text = Annotated[bool, option("--text", "Lines are texts; of records embed the field text.")]
FORM_HELP = "JSONL; safetensors: smaller, and quicker to read; parquet: for other stores. Default: by the name of -o."
Form = Annotated[Format | None, option("--format", FORM_HELP, show_default=False)]
Floats = Annotated[bool, option("--floats", "The embedding as a list of numbers, not as base64 of float16.")]
Changed = Annotated[
    str | None,
    option(
        "--changed INDEX",
        "Only what is new, or changed since it came into INDEX; if there is no INDEX yet, all.",
    ),
]
DryRun = Annotated[bool, option("--dry-run", "Write only what would be embedded, to standard output; load no model.")]


def embed(
    run: Run,
    embedder: EmbedOptions,
    records: Records,
    shards: ShardOptions,
    inputs: Inputs = None,
    text: Text = False,
    form: Form = None,
    floats: Floats = False,
    changed: Changed = None,
    dry_run: DryRun = False,
) -> Exit:
    """Turn pictures and texts into vectors.

    Reads pictures, folders, webdataset shards, URLs and records, and writes one record each with its vector in
    `embedding`. Pictures are rotated by EXIF, transparent parts become white, and of an animation it is the first
    frame. One that cannot be read is named, left out, and makes the exit code 3. A vector of the same model is kept.

    --changed looks at the content of files whose path, time, size or change time the index does not know. A file that
    was moved, copied or touched gets a record with the fields and the vector of the same content in the index; that of
    one that was moved says so in `moved_from`, and index drops the old record. A URL that is in the index is not
    fetched again.
    """
    shards.check(records, changed=changed, dry_run=dry_run)
    form = form or Format(form_of(records.output))
    if floats and form is not Format.JSONL:
        raise VlmkitError("--floats requires the format jsonl", f"leave out --floats or --format {form.value}")
    load = Lazy(embedder.load, run)
    work = partial(_embed, run=run, load=load, text=text, form=form, floats=floats, changed=changed, dry_run=dry_run)
    if shards.out_dir is None:
        return work(records, records.check(inputs)).exit_code()

    def settings() -> dict[str, Any]:
        made = {"command": "embed", "model": load().identity, "text": text}
        return made | {"format": form.value, "floats": floats}

    named = expand_shards(inputs or [], lists=not text)
    return each_shard(run, records, shards, named, f".{form.value}", settings, partial(work, alone=False))


def _embed(
    records: Records,
    paths: list[str],
    *,
    run: Run,
    load: "Callable[[], Embedder]",
    text: bool,
    form: Format,
    floats: bool,
    changed: str | None,
    dry_run: bool,
    alone: bool = True,
) -> Failures:
    """Embed what `paths` stand for; not `alone`: a failure is one of several, and the summary is told elsewhere."""
    from vlmkit.embed import embed as embedded
    from vlmkit.embed import when_needed
    from vlmkit.index import index_folder
    from vlmkit.index.changed import Contents
    from vlmkit.index.changed import changed as only_changed
    from vlmkit.index.known_parts import KnownParts
    from vlmkit.io.inputs import count_inputs, is_one_picture, read_inputs

    reading = replace(records.reading(texts=text, one_picture=not text), puts_off_fields=changed is not None)
    contents = Contents()
    known = KnownParts(index_folder(changed), contents) if changed is not None else None
    reading = replace(reading, known=known)
    summary = run.summary(reading.left_out, brief=not alone, skipped="unchanged")
    items = read_inputs(paths, reading)
    if not dry_run:
        _check_terminal(records, form)
    if summary:
        items, summary.done = summary.reading(items), "would be embedded" if dry_run else summary.done

    def vectorised(items: "Iterable[Item | Failed]", model: "Embedder") -> "Iterator[Record | Failed]":
        how: dict[str, Any] = {"texts": text, "floats": floats, "allow_private": records.allow_private}
        return embedded(items, model, **how, batch_size=run.batch_size, workers=run.threads)

    single_input = alone and (changed is None or list(map(is_one_picture, paths)) == [True])
    output, errors = (None, None) if dry_run else (records.output, records.errors)
    with (
        Failures(errors, single_input=single_input, ignore=records.ignore, summary=summary) as failures,
        Output(output) as out,
    ):
        new = (
            items if changed is None else only_changed(items, index_folder(changed), partial(_tell_kept, run), contents)
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
            summary.counts["films and documents unchanged"] = known.unchanged
        failures.exit_code()
    return failures


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
