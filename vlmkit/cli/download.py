"""What `vlmkit download` says of what there is: --list, --search, --card.

The command download; cli.py enters it in the command table.
"""

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


def found_by(query: "Query") -> "list[Record]":
    """Models of the Hub; where that cannot be asked, what the list has."""
    from vlmkit.download.catalog import local, on_hub
    from vlmkit.download.hub import Unreachable

    try:
        return on_hub(query)
    except Unreachable as error:
        unknown = query.only_on_hub()
        warn(f"{error.what}: these are of --list" + (f", which knows no {', '.join(unknown)}" if unknown else ""))
        return local(query)


def print_card(name: str) -> Exit:
    """One record: of a data set what the list has, of a model what the Hub says, or the list if it cannot be asked."""
    from vlmkit.datasets import DATASETS
    from vlmkit.download import catalog
    from vlmkit.download import hub as models

    known = {str(entry["name"]): entry for entry in catalog.entries()}
    try:
        found = known[name] if name in DATASETS else catalog.card(name, models.facts(models.repo_of(name)))
    except models.Unreachable as error:
        if name not in known:
            raise
        warn(f"{error.what}: this is of --list")
        found = known[name]
    with Output() as out:
        out.write_records([found])
    return Exit.OK


def show(found: "list[Record]", json: bool) -> Exit:
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


class Sort(StrEnum):
    DOWNLOADS = "downloads"
    LIKES = "likes"
    TRENDING = "trending_score"
    CREATED = "created_at"
    MODIFIED = "last_modified"


def _option(flag: str, metavar: str, help: str, **rest: Any) -> Any:
    return typer.Option(flag, metavar=metavar, help=help, **rest)


def download(
    run: Run,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Data sets and models of --list, models ORG/NAME, or one .jsonl of records with url; - if piped.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder for records.jsonl and pictures, or of one model."),
    ] = None,
    split: Annotated[
        str | None, _option("--split", "S", "Split of the data set; the first of --list if not told.")
    ] = None,
    limit: Annotated[
        int | None, _option("--limit", "N", "At most N records; fetches no more than these need, where it can.", min=1)
    ] = None,
    folder: Annotated[
        str | None, _option("--dir", "DIR", "Folder of all data sets; $XDG_DATA_HOME/vlmkit/datasets if not told.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Say what there is: name, size, licence, URL, sum.")] = False,
    search: Annotated[str | None, _option("--search", "WORDS", "Search the Hub for models; off line, --list.")] = None,
    card: Annotated[
        str | None, _option("--card", "NAME", "Print the facts of a model's card, or of a data set.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check again what is there; fetch nothing.")] = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Insist on the sizes and sums of --list, or take what comes.")
    ] = True,
    mirror: Annotated[
        str | None, _option("--mirror", "BASE", "Fetch data sets from BASE, in place of scheme and host of each URL.")
    ] = None,
    tar: Annotated[
        int | None, _option("--tar", "N", "Of a URL list: webdataset shards of N rows, not single files.", min=1)
    ] = None,
    resize: Annotated[
        int | None, _option("--resize", "N", "Of a URL list: make sides longer than N pixels that long.", min=16)
    ] = None,
    retry: Annotated[
        str | None, _option("--retry", "FILE", "Of a URL list: fetch only what FILE, of --errors, names.")
    ] = None,
    timeout: Annotated[
        float,
        _option("--timeout", "S", "Give up on a server that sends less than 1 KiB a second for S seconds.", min=0.1),
    ] = 30.0,
    allow_private: AllowPrivate = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Fetch a model that has no safetensors; a pickle can run any code.")
    ] = False,
    task: Annotated[str | None, _option("--task", "T", "--search: task, such as image-text-to-text.")] = None,
    library: Annotated[str | None, _option("--library", "L", "--search: library, such as transformers.")] = None,
    licence: Annotated[str | None, _option("--licence", "L", "--search: licence, such as apache-2.0.")] = None,
    downloads: Annotated[
        int, _option("--min-downloads", "N", "--search: at least so many downloads a month.", min=0)
    ] = 0,
    smallest: Annotated[str | None, _option("--min-size", "N", "--search: parameters at least, such as 100M.")] = None,
    largest: Annotated[str | None, _option("--max-size", "N", "--search: parameters at most, such as 3B.")] = None,
    sort: Annotated[Sort, typer.Option(help="--search: what stands first.", show_choices=True)] = Sort.DOWNLOADS,
    errors: Errors = None,
    json: Json = False,
) -> Exit:
    """Fetch data sets, models, and pictures by URL: whole or not at all, ready to use.

    A data set becomes records on standard output, fit for `vlmkit train`; its licence is told first. A model goes into
    the cache of the Hugging Face Hub, and its folder is printed. A list of URLs becomes pictures in a folder.

    What was cut off goes on where it stood, also after a kill; what is there is not fetched again. Sizes and SHA-256
    are checked where --list has them. Servers that ask not to be used for AI (X-Robots-Tag) are left alone in lists.
    """
    if search is not None:
        from vlmkit.download.catalog import Query

        query = Query(search, task, library, licence, downloads, smallest, largest, sort.value, limit or 20)
        return show(found_by(query), json)
    if listing:
        from vlmkit.download.catalog import entries

        return show(list(entries()), json)
    if card is not None:
        return print_card(card)
    lists = [name for name in names or [] if _is_list(name)]
    if not names:
        raise VlmkitError("nothing to download", "name a data set or a model (vlmkit download --list)")
    if lists and len(names) > 1:
        raise VlmkitError("a URL list and more", "download one list at a time, and names by themselves")
    if lists:
        if output is None:
            raise VlmkitError("a URL list needs a folder", "give -o DIR")
        return _list(run, lists[0], Path(output), tar, resize, retry, allow_private, limit, errors)
    if tar or resize or retry:
        raise VlmkitError("--tar, --resize and --retry are for URL lists", "leave them out")
    _check_names(names, output)
    from vlmkit.download import run as fetching

    options = fetching.DownloadOptions(
        folder=Path(folder) if folder else _data_home() / "datasets",
        output=Path(output) if output else None,
        split=split,
        limit=limit,
        mirror=mirror,
        allow_private=allow_private,
        allow_pickle=allow_pickle,
        check=check,
        timeout=timeout,
        quiet=run.quiet,
    )
    with Failures(errors) as failures:
        if verify:
            with Output() as out:
                out.write_records(failures.filter_failures(fetching.verify(names, options)))
            return failures.exit_code()
        return _names(names, options, failures, json)


def _is_list(name: str) -> bool:
    return name == "-" or name.endswith((".jsonl", ".json")) or os.path.isfile(name)


def _check_names(names: list[str], output: str | None) -> None:
    """Raise VlmkitError for what is no data set and no model, and for an -o that cannot be for all of them."""
    from vlmkit.datasets import DATASETS
    from vlmkit.download.hub import repo_of
    from vlmkit.models.resolve import ALIASES

    known = [*DATASETS, *ALIASES]
    for name in names:
        if name not in known and "/" not in name:
            like = get_close_matches(name, known, 1)
            what = f"did you mean {like[0]}?" if like else "see vlmkit download --list"
            raise VlmkitError(f"there is no data set and no model {name}", what)
        if name not in DATASETS:
            repo_of(name)
            if output is not None and len(names) > 1:
                raise VlmkitError("-o with a model and more", "download it by itself, or leave out -o")


def _data_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "vlmkit"


def _names(names: list[str], options: "DownloadOptions", failures: Failures, json: bool) -> Exit:
    """Records on standard output, or in a file where that was asked for or is a terminal; one model as its folder."""
    from vlmkit.datasets import DATASETS
    from vlmkit.download.run import download as fetch_names

    found = failures.filter_failures(fetch_names(names, options))
    if names[0] not in DATASETS and len(names) == 1 and not json:
        with Output() as out:
            for record in found:
                out.write(os.fsencode(record["path"]) + b"\n")
        return failures.exit_code()
    file = _file_for(names, options, json)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    with Output(None if file is None else str(file)) as out:
        out.write_records(progress(found, quiet=options.quiet, unit="records"))  # type: ignore[arg-type]
        exit_code = failures.exit_code()
    if file is not None and not options.quiet:
        warn(f"the records are in {file}")
    return exit_code


def _file_for(names: list[str], options: "DownloadOptions", json: bool) -> Path | None:
    from vlmkit.datasets import DATASETS

    if all(name not in DATASETS for name in names):
        return None
    if options.output is not None:
        return options.output / "records.jsonl"
    if json or sys.stdout is None or not sys.stdout.isatty():
        return None
    return options.folder / f"{'-'.join([*names, *filter(None, [options.split])])}.jsonl"


def _list(
    run: Run,
    path: str,
    folder: Path,
    tar: int | None,
    resize: int | None,
    retry: str | None,
    allow_private: bool,
    limit: int | None,
    errors: str | None,
) -> Exit:
    from vlmkit.download import url_list as lists
    from vlmkit.download.url_list import Fetcher
    from vlmkit.io.http import HttpClient

    if folder.exists() and not folder.is_dir():
        raise VlmkitError(f"{folder} is no folder", "name another one with -o")
    only = None if retry is None else lists.named_in(retry)
    rows = islice(lists.read_list(path), limit)
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with Failures(errors) as failures, Output(str(folder / "records.jsonl")) as out:
        with HttpClient(allow_private=allow_private) as web:
            fetcher = Fetcher(web, resize)
            if tar is None:
                found = lists.into_folder(rows, folder, fetcher, only)
            else:
                found = lists.into_shards(rows, folder, fetcher, only, tar)
            out.write_records(failures.filter_failures(progress(found, quiet=run.quiet, unit="pictures")))
        return failures.exit_code()
