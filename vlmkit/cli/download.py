"""The command download: fetches data sets, models and pictures by URL; --list, --search and --card describe them."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from vlmkit.cli.options import AllowPrivate, Common, Errors, Ignore, Json, MaxPixels, hand_on_max_pixels, option
from vlmkit.cli.screen import for_person, print_facts, print_table
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.files import user_folder
from vlmkit.io.terminal import Failures, Output, progress, warn

if TYPE_CHECKING:
    from vlmkit.download.run import DownloadOptions
    from vlmkit.io.records import Record

Text = str | None


class Sort(StrEnum):
    DOWNLOADS = "downloads"
    LIKES = "likes"
    TRENDING = "trending_score"
    CREATED = "created_at"
    MODIFIED = "last_modified"


Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME",
        help=(
            "Data sets and models of --list, models ORG/NAME, or one list of URLs: records, CSV, TSV, Parquet, or "
            "one URL a line; - if piped."
        ),
        show_default=False,
    ),
]
Folder = Annotated[Text, option("--dir DIR", "Folder of all data sets; default: $XDG_DATA_HOME/vlmkit/datasets.")]
Listing = Annotated[bool, option("--list", "List what there is: name, size, licence, URL, digest.")]
Card = Annotated[Text, option("--card NAME", "Print the card of a model, or the facts of a data set.")]
Verify = Annotated[bool, option("--verify", "Check again what is there; fetch nothing.")]
TIMEOUT_HELP = "Give up on a server that sends less than 1 KiB a second for S seconds."


@dataclass(frozen=True, slots=True)
class Fetching:
    """What is fetched, and from where."""

    title: ClassVar[str] = "Fetching"
    output: Annotated[Text, option("-o, --output DIR", "Folder for records and pictures, or one model.")] = None
    split: Annotated[Text, option("--split S", "Split of the data set; default: the first of --list.")] = None
    limit: Annotated[int | None, option("--limit N", "At most N records, and only their files if possible.", min=1)] = (
        None
    )
    folder: Folder = None
    check: Annotated[bool, option("--check/--no-check", "Insist on the sizes and digests of --list.")] = True
    mirror: Annotated[Text, option("--mirror BASE", "Replace scheme and host of data sets' URLs by BASE.")] = None
    timeout: Annotated[float, option("--timeout S", TIMEOUT_HELP, min=0.1)] = 30.0
    allow_private: AllowPrivate = False
    allow_pickle: Annotated[
        bool, option("--allow-pickle", "Fetch a model without safetensors; a pickle can run code.")
    ] = False


@dataclass(frozen=True, slots=True)
class UrlList:
    """What is made of a list of URLs."""

    title: ClassVar[str] = "Lists of URLs"
    url_column: Annotated[Text, option("--url-column NAME", "Column or field of the URLs; default: url, or image.")] = (
        None
    )
    tar: Annotated[int | None, option("--tar N", "Webdataset shards of N rows.", min=1)] = None
    resize: Annotated[int | None, option("--resize N", "At most N pixels a side.", min=16)] = None
    retry: Annotated[Text, option("--retry FILE", "Fetch only the rows in FILE, of --errors.")] = None


@dataclass(frozen=True, slots=True)
class HubQuery:
    """Which models of the Hub are looked for."""

    title: ClassVar[str] = "Searching the Hub"
    search: Annotated[Text, option("--search WORDS", "Search the Hub for models; off line, --list.")] = None
    task: Annotated[Text, option("--task T", "Task, such as image-text-to-text.", needs=["search"])] = None
    library: Annotated[Text, option("--library L", "Library, such as transformers.", needs=["search"])] = None
    licence: Annotated[Text, option("--licence L", "Licence, such as apache-2.0.", needs=["search"])] = None
    downloads: Annotated[int, option("--min-downloads N", "At least N downloads a month.", needs=["search"], min=0)] = 0
    smallest: Annotated[Text, option("--min-size N", "Parameters at least, such as 100M.", needs=["search"])] = None
    largest: Annotated[Text, option("--max-size N", "Parameters at most, such as 3B.", needs=["search"])] = None
    sort: Annotated[Sort, option("--sort", "What stands first.", needs=["search"])] = Sort.DOWNLOADS


def download(
    run: Common,
    fetching: Fetching,
    url_list: UrlList,
    hub: HubQuery,
    names: Names = None,
    listing: Listing = False,
    card: Card = None,
    verify: Verify = False,
    errors: Errors = None,
    ignore: Ignore = None,
    json: Json = False,
    max_pixels: MaxPixels = None,
) -> Exit:
    """Fetch data sets, models, and pictures by URL.

    What is fetched is complete or absent, and ready to use. A data set becomes records on standard output, fit for
    `vlmkit train`; its licence goes to standard error first. A model goes into the cache of the Hugging Face Hub, and
    its folder is printed. A list of URLs becomes pictures in a folder, which adds to what the folder holds.

    What was cut off is resumed, also after a kill; what is there is not fetched again. Sizes and SHA-256 are checked
    where --list has them. Pictures of lists whose servers ask not to be used for AI (X-Robots-Tag) are left out.
    """
    hand_on_max_pixels(max_pixels)
    if hub.search is not None:
        return _show(_search(hub, fetching.limit or 20), json)
    if listing:
        from vlmkit.download.catalog import entries

        return _show(list(entries()), json)
    if card is not None:
        return _print_card(card, json)
    if not names:
        raise VlmkitError("nothing to download", "name a data set or a model (vlmkit download --list)")
    with Failures(errors, ignore=ignore, summary=run.summary()) as failures:
        if any(map(_is_list, names)):
            return _fetch_list(run, names, fetching, url_list, failures)
        if url_list != UrlList():
            raise VlmkitError("--tar, --resize, --retry and --url-column are for URL lists", "leave them out")
        _check_names(names, fetching.output)
        options = _options(run, fetching)
        return _verify(names, options, failures) if verify else _fetch_names(names, options, failures, json)


def _options(run: Common, fetching: Fetching) -> "DownloadOptions":
    from vlmkit.download.run import DownloadOptions

    return DownloadOptions(
        Path(fetching.folder) if fetching.folder else user_folder("data") / "datasets",
        Path(fetching.output) if fetching.output else None,
        fetching.split,
        fetching.limit,
        fetching.mirror,
        timeout=fetching.timeout,
        quiet=run.quiet,
        allow_private=fetching.allow_private,
        allow_pickle=fetching.allow_pickle,
        check=fetching.check,
    )


def _search(hub: HubQuery, limit: int) -> "list[Record]":
    """Models of the Hub, or of --list where the Hub cannot be reached."""
    from vlmkit.download.catalog import Query, search_hub, search_list
    from vlmkit.download.hub import Unreachable

    sizes = hub.smallest, hub.largest
    query = Query(hub.search or "", hub.task, hub.library, hub.licence, hub.downloads, *sizes, hub.sort.value, limit)
    try:
        return search_hub(query)
    except Unreachable as error:
        unknown = query.only_on_hub()
        warn(f"{error.what}: results come from --list" + (f", which ignores {', '.join(unknown)}" if unknown else ""))
        return search_list(query)


def _print_card(name: str, json: bool) -> Exit:
    """Print one record: of a data set from the list, of a model from the Hub, or from the list if that fails."""
    from vlmkit.datasets import DATASETS
    from vlmkit.download import catalog, hub

    known = {str(entry["name"]): entry for entry in catalog.entries()}
    try:
        found = known[name] if name in DATASETS else catalog.model_card(name, hub.model_info(hub.repo_of(name)))
    except hub.Unreachable as error:
        if name not in known:
            raise
        warn(f"{error.what}: the entry of --list is shown")
        found = known[name]
    if for_person(None, json):
        print_facts(found | {"files": _files(found), "bytes": _size(found)})
        return Exit.OK
    with Output() as out:
        out.write_records([found])
    return Exit.OK


def _files(entry: "Record") -> object:
    """Of a data set its files, of a model how many these are."""
    files = entry.get("files")
    return [f"{file['url']} ({_size(file)})" for file in files] if isinstance(files, list) else files


def _size(entry: "Record") -> str:
    from vlmkit.download.run import amount

    return "" if entry.get("bytes") is None else amount(entry["bytes"])


def _show(found: "list[Record]", json: bool) -> Exit:
    """A table on a terminal, else records."""
    if not found:
        warn("nothing found: no model has these words and properties: try fewer of them")
        return Exit.NOTHING_FOUND
    if for_person(None, json):
        _print_table(found)
    else:
        with Output() as out:
            out.write_records(found)
    return Exit.OK


def _print_table(found: "list[Record]") -> None:
    """Of a search of the Hub with what people choose by; else with sizes and what it is."""
    if "downloads" in found[0]:
        titles = ["name", "parameters", "downloads", "likes", "licence", "task"]
        counts = [[f"{entry[name]:,}" if entry[name] else "?" for name in titles[1:4]] for entry in found]
        rows = [[e["name"], *c, e["licence"] or "?", e["task"] or "?"] for e, c in zip(found, counts, strict=True)]
        print_table(titles, rows, right=titles[1:4])
        return
    for kind, above in {"dataset": "Data sets", "model": "Models"}.items():
        rows = [[e["name"], _size(e), _what(e)] for e in found if e["kind"] == kind]
        if rows:
            print_table(["name", "size", "what it is (licence)"], rows, right=["size"], overflow="fold", above=above)


def _what(entry: "Record") -> str:
    """What a data set or model is, with its licence where that is known."""
    return f"{entry.get('what') or ''}{' ({})'.format(entry['licence']) if entry['licence'] else ''}".strip()


def _is_list(name: str) -> bool:
    from vlmkit.download.url_list import SUFFIXES

    return name == "-" or name.lower().endswith(SUFFIXES) or os.path.isfile(name)


def _check_names(names: list[str], output: str | None) -> None:
    """Raise VlmkitError for names of neither a data set nor a model, and for -o with several models."""
    from vlmkit.datasets import DATASETS
    from vlmkit.download.hub import repo_of
    from vlmkit.models.resolve import ALIASES

    for name in names:
        if name not in DATASETS and name not in ALIASES and "/" not in name:
            like = get_close_matches(name, [*DATASETS, *ALIASES], 1)
            what = f"did you mean {like[0]}?" if like else "see vlmkit download --list"
            raise VlmkitError(f"no data set or model is named {name}", what)
        if name not in DATASETS:
            repo_of(name)
            if output is not None and len(names) > 1:
                raise VlmkitError("-o requires a single model", "download it by itself, or leave out -o")


def _verify(names: list[str], options: "DownloadOptions", failures: Failures) -> Exit:
    from vlmkit.download.run import verify

    with Output() as out:
        out.write_records(failures.filter_failures(verify(names, options)))
    return failures.exit_code()


def _fetch_names(names: list[str], options: "DownloadOptions", failures: Failures, json: bool) -> Exit:
    """Records on standard output, or in a file with -o or on a terminal; of a single model only its folder."""
    from vlmkit.datasets import DATASETS
    from vlmkit.download.run import download

    found = failures.filter_failures(download(names, options))
    if names[0] not in DATASETS and len(names) == 1 and not json:
        with Output() as out:
            for record in found:
                out.write(os.fsencode(record["path"]) + b"\n")
        return failures.exit_code()
    records: Iterable[Record] = progress(found, quiet=options.quiet, unit="records")  # type: ignore[assignment]
    file = _records_file(names, options, json)
    if file is not None and options.output is not None:
        exit_code = _add_records(file, records, failures)
    else:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        with Output(None if file is None else str(file)) as out:
            out.write_records(records)
            exit_code = failures.exit_code()
    if file is not None and not options.quiet:
        warn(f"the records are in {file}")
    return exit_code


def _add_records(file: Path, records: "Iterable[Record]", failures: Failures) -> Exit:
    """Add what does not fail to a folder's records.jsonl. Raises AlreadyReported before the file is changed."""
    from vlmkit.download.records_file import add_records, claimed

    def unless_all_failed() -> "Iterator[Record]":
        yield from records
        failures.exit_code()

    with claimed(file.parent):
        add_records(file, unless_all_failed())
    return failures.exit_code()


def _records_file(names: list[str], options: "DownloadOptions", json: bool) -> Path | None:
    """The file that the records go into; None for standard output."""
    from vlmkit.datasets import DATASETS

    if all(name not in DATASETS for name in names):
        return None
    if options.output is not None:
        return options.output / "records.jsonl"
    if not for_person(None, json):
        return None
    return options.folder / f"{'-'.join([*names, *filter(None, [options.split])])}.jsonl"


def _fetch_list(run: Common, names: list[str], fetching: Fetching, url_list: UrlList, failures: Failures) -> Exit:
    from vlmkit.download.pictures import PictureFetcher, into_folder
    from vlmkit.download.records_file import add_records, claimed
    from vlmkit.download.shards import into_shards
    from vlmkit.download.url_list import read_failed_ids, read_list
    from vlmkit.io.http import HttpClient

    if len(names) > 1:
        raise VlmkitError("a URL list cannot be combined with other names", "download one list at a time")
    if fetching.output is None:
        raise VlmkitError("a URL list needs a folder", "give -o DIR")
    folder = Path(fetching.output).absolute()
    if folder.exists() and not folder.is_dir():
        raise VlmkitError(f"{fetching.output} is not a folder", "name another one with -o")
    only = None if url_list.retry is None else read_failed_ids(url_list.retry)
    rows = islice(read_list(names[0], url_list.url_column), fetching.limit)
    with claimed(folder), HttpClient(allow_private=fetching.allow_private) as client:
        fetcher = PictureFetcher(client, url_list.resize, only)
        size = url_list.tar
        found = into_folder(rows, folder, fetcher) if size is None else into_shards(rows, folder, fetcher, size)
        pictures = failures.filter_failures(progress(found, quiet=run.quiet, unit="pictures"))
        add_records(folder / "records.jsonl", pictures)
    return failures.exit_code()
