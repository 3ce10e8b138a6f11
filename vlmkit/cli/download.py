"""The command download: data sets, models and pictures by URL; and what there is, --list, --search, --card."""

import os
import sys
from difflib import get_close_matches
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmkit.cli.options import AllowPrivate, Errors, Json, Run
from vlmkit.errors import Exit, VlmkitError, one_line
from vlmkit.io.terminal import Failures, Output, console, progress, warn

if TYPE_CHECKING:
    from vlmkit.download.catalog import Query
    from vlmkit.download.run import DownloadOptions
    from vlmkit.io.records import Record

Text = str | None


class Sort(StrEnum):
    DOWNLOADS = "downloads"
    LIKES = "likes"
    TRENDING = "trending_score"
    CREATED = "created_at"
    MODIFIED = "last_modified"


def _option(flag: str, metavar: Text, help: str, *short: str, **rest: Any) -> Any:
    return typer.Option(*short, flag, metavar=metavar, help=help, **rest)


Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME",
        help="Data sets and models of --list, models ORG/NAME, or one .jsonl of records with url; - if piped.",
        show_default=False,
    ),
]
Folder = Annotated[Text, _option("--dir", "DIR", "Folder of all data sets; default: $XDG_DATA_HOME/vlmkit/datasets.")]
Timeout = Annotated[
    float, _option("--timeout", "S", "Give up on a server that sends less than 1 KiB a second for S seconds.", min=0.1)
]
NoCheck = Annotated[bool, typer.Option("--check/--no-check", help="Insist on the sizes and digests of --list.")]
Pickle = Annotated[bool, _option("--allow-pickle", None, "Fetch a model without safetensors; a pickle can run code.")]


def download(
    run: Run,
    names: Names = None,
    output: Annotated[Text, _option("--output", "DIR", "Folder for records and pictures, or one model.", "-o")] = None,
    split: Annotated[Text, _option("--split", "S", "Split of the data set; default: the first of --list.")] = None,
    limit: Annotated[
        int | None, _option("--limit", "N", "At most N records, and only their files if possible.", min=1)
    ] = None,
    folder: Folder = None,
    listing: Annotated[bool, _option("--list", None, "List what there is: name, size, licence, URL, digest.")] = False,
    search: Annotated[Text, _option("--search", "WORDS", "Search the Hub for models; off line, --list.")] = None,
    card: Annotated[Text, _option("--card", "NAME", "Print the card of a model, or the facts of a data set.")] = None,
    verify: Annotated[bool, _option("--verify", None, "Check again what is there; fetch nothing.")] = False,
    check: NoCheck = True,
    mirror: Annotated[Text, _option("--mirror", "BASE", "Replace scheme and host of data sets' URLs by BASE.")] = None,
    tar: Annotated[int | None, _option("--tar", "N", "URL list: webdataset shards of N rows.", min=1)] = None,
    resize: Annotated[int | None, _option("--resize", "N", "URL list: at most N pixels a side.", min=16)] = None,
    retry: Annotated[Text, _option("--retry", "FILE", "URL list: fetch only the rows in FILE, of --errors.")] = None,
    timeout: Timeout = 30.0,
    allow_private: AllowPrivate = False,
    allow_pickle: Pickle = False,
    task: Annotated[Text, _option("--task", "T", "--search: task, such as image-text-to-text.")] = None,
    library: Annotated[Text, _option("--library", "L", "--search: library, such as transformers.")] = None,
    licence: Annotated[Text, _option("--licence", "L", "--search: licence, such as apache-2.0.")] = None,
    downloads: Annotated[int, _option("--min-downloads", "N", "--search: at least N downloads a month.", min=0)] = 0,
    smallest: Annotated[Text, _option("--min-size", "N", "--search: parameters at least, such as 100M.")] = None,
    largest: Annotated[Text, _option("--max-size", "N", "--search: parameters at most, such as 3B.")] = None,
    sort: Annotated[Sort, typer.Option(help="--search: what stands first.", show_choices=True)] = Sort.DOWNLOADS,
    errors: Errors = None,
    json: Json = False,
) -> Exit:
    """Fetch data sets, models, and pictures by URL: complete or not at all, ready to use.

    A data set becomes records on standard output, fit for `vlmkit train`; its licence goes to standard error first. A
    model goes into the cache of the Hugging Face Hub, and its folder is printed. A list of URLs becomes pictures in a
    folder.

    What was cut off is resumed, also after a kill; what is there is not fetched again. Sizes and SHA-256 are checked
    where --list has them. Pictures of lists whose servers ask not to be used for AI (X-Robots-Tag) are left out.
    """
    if search is not None:
        from vlmkit.download.catalog import Query

        query = Query(search, task, library, licence, downloads, smallest, largest, sort.value, limit or 20)
        return _show(_search(query), json)
    if listing:
        from vlmkit.download.catalog import entries

        return _show(list(entries()), json)
    if card is not None:
        return _print_card(card)
    if not names:
        raise VlmkitError("nothing to download", "name a data set or a model (vlmkit download --list)")
    if any(map(_is_list, names)):
        return _url_list(run, names, output, limit, tar, resize, retry, allow_private, errors)
    if tar or resize or retry:
        raise VlmkitError("--tar, --resize and --retry are for URL lists", "leave them out")
    _check_names(names, output)
    from vlmkit.download.run import DownloadOptions

    sets = Path(folder) if folder else _data_home() / "datasets"
    place = Path(output) if output else None
    permitted = {"allow_private": allow_private, "allow_pickle": allow_pickle, "check": check}
    options = DownloadOptions(sets, place, split, limit, mirror, timeout=timeout, quiet=run.quiet, **permitted)
    with Failures(errors) as failures:
        return _verify(names, options, failures) if verify else _names(names, options, failures, json)


def _search(query: "Query") -> "list[Record]":
    """Models of the Hub; where that cannot be asked, what the list has."""
    from vlmkit.download.catalog import search_hub, search_list
    from vlmkit.download.hub import Unreachable

    try:
        return search_hub(query)
    except Unreachable as error:
        unknown = query.only_on_hub()
        warn(f"{error.what}: these are of --list" + (f", which knows no {', '.join(unknown)}" if unknown else ""))
        return search_list(query)


def _print_card(name: str) -> Exit:
    """One record: of a data set what the list has, of a model what the Hub has, or the list if it cannot be reached."""
    from vlmkit.datasets import DATASETS
    from vlmkit.download import catalog, hub

    known = {str(entry["name"]): entry for entry in catalog.entries()}
    try:
        found = known[name] if name in DATASETS else catalog.model_card(name, hub.model_info(hub.repo_of(name)))
    except hub.Unreachable as error:
        if name not in known:
            raise
        warn(f"{error.what}: this is of --list")
        found = known[name]
    with Output() as out:
        out.write_records([found])
    return Exit.OK


def _show(found: "list[Record]", json: bool) -> Exit:
    """A table on a terminal, else records."""
    if json or sys.stdout is None or not sys.stdout.isatty():
        with Output() as out:
            out.write_records(found)
    elif found:
        _print_table(found)
    return Exit.OK if found else Exit.NOTHING_FOUND


def _print_table(found: "list[Record]") -> None:
    from rich.table import Table
    from rich.text import Text

    from vlmkit.download.run import amount

    table = Table(box=None, header_style="bold")
    for name in ("name", "kind", "size", "licence", "what"):
        table.add_column(name, justify="right" if name == "size" else "left", overflow="fold")
    for entry in found:
        size = entry.get("bytes")
        cells = (entry["name"], entry["kind"], "?" if size is None else amount(size), entry["licence"] or "?")
        table.add_row(*(Text(one_line(str(cell))) for cell in (*cells, entry.get("what") or entry.get("task") or "")))
    console().print(table)


def _is_list(name: str) -> bool:
    return name == "-" or name.endswith((".jsonl", ".json")) or os.path.isfile(name)


def _check_names(names: list[str], output: str | None) -> None:
    """Raise VlmkitError for what is no data set and no model, and for an -o that cannot be for all of them."""
    from vlmkit.datasets import DATASETS
    from vlmkit.download.hub import repo_of
    from vlmkit.models.resolve import ALIASES

    for name in names:
        if name not in DATASETS and name not in ALIASES and "/" not in name:
            like = get_close_matches(name, [*DATASETS, *ALIASES], 1)
            what = f"did you mean {like[0]}?" if like else "see vlmkit download --list"
            raise VlmkitError(f"there is no data set and no model {name}", what)
        if name not in DATASETS:
            repo_of(name)
            if output is not None and len(names) > 1:
                raise VlmkitError("-o takes one model alone", "download it by itself, or leave out -o")


def _data_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "vlmkit"


def _verify(names: list[str], options: "DownloadOptions", failures: Failures) -> Exit:
    from vlmkit.download.run import verify

    with Output() as out:
        out.write_records(failures.filter_failures(verify(names, options)))
    return failures.exit_code()


def _names(names: list[str], options: "DownloadOptions", failures: Failures, json: bool) -> Exit:
    """Records on standard output, or in a file where that was asked for or is a terminal; one model as its folder."""
    from vlmkit.datasets import DATASETS
    from vlmkit.download.run import download

    found = failures.filter_failures(download(names, options))
    if names[0] not in DATASETS and len(names) == 1 and not json:
        with Output() as out:
            for record in found:
                out.write(os.fsencode(record["path"]) + b"\n")
        return failures.exit_code()
    file = _records_file(names, options, json)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    with Output(None if file is None else str(file)) as out:
        out.write_records(progress(found, quiet=options.quiet, unit="records"))  # type: ignore[arg-type]
        exit_code = failures.exit_code()
    if file is not None and not options.quiet:
        warn(f"the records are in {file}")
    return exit_code


def _records_file(names: list[str], options: "DownloadOptions", json: bool) -> Path | None:
    """The file that the records go into; None for standard output."""
    from vlmkit.datasets import DATASETS

    if all(name not in DATASETS for name in names):
        return None
    if options.output is not None:
        return options.output / "records.jsonl"
    if json or sys.stdout is None or not sys.stdout.isatty():
        return None
    return options.folder / f"{'-'.join([*names, *filter(None, [options.split])])}.jsonl"


def _url_list(
    run: Run,
    names: list[str],
    output: Text,
    limit: int | None,
    tar: int | None,
    resize: int | None,
    retry: Text,
    allow_private: bool,
    errors: Text,
) -> Exit:
    from vlmkit.download.url_list import PictureFetcher, into_folder, into_shards, read_failed_ids, read_list
    from vlmkit.io.http import HttpClient

    if len(names) > 1:
        raise VlmkitError("a URL list cannot be combined with other names", "download one list at a time")
    if output is None:
        raise VlmkitError("a URL list needs a folder", "give -o DIR")
    folder = Path(output).absolute()
    if folder.exists() and not folder.is_dir():
        raise VlmkitError(f"{output} is not a folder", "name another one with -o")
    only = None if retry is None else read_failed_ids(retry)
    rows = islice(read_list(names[0]), limit)
    folder.mkdir(parents=True, exist_ok=True)
    with Failures(errors) as failures, Output(str(folder / "records.jsonl")) as out:
        with HttpClient(allow_private=allow_private) as client:
            fetcher = PictureFetcher(client, resize, only)
            found = into_folder(rows, folder, fetcher) if tar is None else into_shards(rows, folder, fetcher, tar)
            out.write_records(failures.filter_failures(progress(found, quiet=run.quiet, unit="pictures")))
        return failures.exit_code()
