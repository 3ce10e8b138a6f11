"""The command table: every command and option stands here once, and docs are generated from it.

The only file that knows typer. A command is a few lines that call a room below; heavy imports stand in the commands.
"""

import functools
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmkit import __version__
from vlmkit.errors import Exit, VlmkitError, one_line
from vlmkit.examples import EXAMPLES
from vlmkit.streams import AlreadyTold, ClosedPipe, Failures, Output, progress, tell

if TYPE_CHECKING:
    from vlmkit.models import Model
    from vlmkit.records import Record

PROGRAM = "vlmkit"
TAGLINE = "Composable commands for pictures and language."

app = typer.Typer(
    help=TAGLINE,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("-V", "--version", callback=_print_version, is_eager=True, help="Print the version.")
]


@app.callback()
def _root(version: Version = False) -> None:
    pass


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


@dataclass(frozen=True, slots=True)
class Run:
    """The options that every command has."""

    device: Annotated[
        Device, typer.Option(help="Where models run; auto takes CUDA, then MPS, then the CPU.", show_choices=True)
    ] = Device.AUTO
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures or texts in one batch.")] = 16
    workers: Annotated[int, typer.Option(min=0, metavar="N", help="Threads that decode; 0 for one a core.")] = 0
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of everything random.")] = 0
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no notes; errors are still told.")] = (
        False
    )
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say which model and device are used.")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False
    version: Version = False

    @property
    def threads(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))

    def load(self, name: str) -> "Model":
        """The model called `name`, on this device."""
        from vlmkit.models import Hardware, load_embedder

        model = load_embedder(name, Hardware(self.device.value))
        if self.verbose:
            tell(f"model {model.identity}, device {model.embedder.device}")
        return model


Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT",
        help="Pictures, folders, .tar shards, .jsonl or .json records, safetensors, - for standard input.",
        show_default=False,
    ),
]
OutputFile = Annotated[
    str | None,
    typer.Option("-o", "--output", metavar="FILE", help="Write to FILE, whole or not at all; - is standard output."),
]
Errors = Annotated[
    str | None, typer.Option("--errors", metavar="FILE", help="Write failed records to FILE: id, image, error.")
]
EmbedModel = Annotated[
    str,
    typer.Option(
        "-m", "--model", metavar="MODEL", envvar="VLMKIT_EMBED_MODEL", help="Model that embeds: a name or a folder."
    ),
]
IndexName = Annotated[
    str,
    typer.Option(
        "-i",
        "--index",
        metavar="INDEX",
        envvar="VLMKIT_INDEX",
        help="Index: a path (has / or .) or a name under $XDG_DATA_HOME/vlmkit.",
    ),
]
Images = Annotated[
    str | None, typer.Option("--images", metavar="DIR", help="Folder of relative image fields in records.")
]
Nul = Annotated[bool, typer.Option("-0", "--null", help="Names on standard input end in NUL, not in a line feed.")]
Json = Annotated[bool, typer.Option("--json", help="Records out, one JSON object a line, on a terminal too.")]


class Format(StrEnum):
    JSONL = "jsonl"
    SAFETENSORS = "safetensors"


class Stage(StrEnum):
    CONTRASTIVE = "contrastive"


def command(function: Callable[..., Exit | None]) -> Callable[..., Exit | None]:
    """Enter `function` in the command table: its own options and those of `Run`, which it gets as `run`."""
    common = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for f in fields(Run)
    ]
    own = [p for p in inspect.signature(function).parameters.values() if p.name != "run"]

    @functools.wraps(function)
    def with_run(**options: Any) -> Exit | None:
        run = Run(**{parameter.name: options.pop(parameter.name) for parameter in common})
        return function(run=run, **options)

    with_run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + common
    )
    with_run.__annotations__ = {p.name: p.annotation for p in [*own, *common]}
    shown = "\n".join(f"  # {example.what}\n  {example.line}" for example in EXAMPLES[function.__name__])
    return app.command(epilog=f"\b\nExamples:\n{shown}")(with_run)


@command
def embed(
    run: Run,
    inputs: Inputs = None,
    output: OutputFile = None,
    model: EmbedModel = "mini",
    text: Annotated[bool, typer.Option("--text", help="Lines are texts; of records embed the field text.")] = False,
    form: Annotated[
        Format, typer.Option("--format", help="JSONL, or safetensors: smaller, and quicker to read.")
    ] = Format.JSONL,
    images: Images = None,
    nul: Nul = False,
    errors: Errors = None,
    json: Json = False,
) -> Exit:
    """Turn pictures and texts into vectors.

    Reads pictures, folders, webdataset shards and records, and writes one record each with its vector in `embedding`.
    Pictures are rotated as their EXIF orientation says. One that cannot be read is named, left out, and makes the
    exit code 3.
    """
    from vlmkit.embed import embed as embedded
    from vlmkit.inputs import Reading, read_inputs

    items = read_inputs(inputs or [], Reading(texts=text, nul=nul, images=images))
    with Failures(errors) as failures, Output(output) as out:
        results = embedded(items, run.load(model), texts=text, batch_size=run.batch_size, workers=run.threads)
        out.write_records(failures.sift(progress(results, quiet=run.quiet, unit="records")), form.value)
        return failures.verdict()


@command
def index(
    run: Run,
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Embedded records, JSONL or safetensors.", show_default=False),
    ] = None,
    index: IndexName = "default",
    info: Annotated[bool, typer.Option("--info", help="Print what the index holds, as one JSON object.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check the index; exit code 2 if it is damaged.")] = False,
    errors: Errors = None,
    json: Json = False,
) -> Exit:
    """Add embedded records to an index, or look after it.

    A record replaces the one with the same `id`. An index holds the vectors of one model and refuses others. It is
    saved every 10,000 records or 10 seconds and at the end; each save is complete or absent.
    """
    from vlmkit.index import Index, Writer, decoded, index_folder
    from vlmkit.inputs import records_of

    folder = index_folder(index)
    if info or verify:
        with Index(folder) as opened, Output() as out:
            if verify:
                opened.verify()
            if info:
                out.write_records([opened.info()])
        return Exit.OK
    for name in files or []:
        if os.path.isdir(name):
            raise VlmkitError(f"{name} is a folder of pictures, not of records", f"vlmkit embed {name} | vlmkit index")
    rows = records_of(files or [])
    with Failures(errors) as failures, Writer(folder) as writer:
        for record in failures.sift(progress(decoded(rows), quiet=run.quiet, unit="records")):
            writer.add(record)
    if not run.quiet and sys.stderr.isatty():
        tell(f"{writer.added} records saved in {folder}")
    return failures.verdict()


@command
def search(
    run: Run,
    query: Annotated[
        list[str] | None, typer.Argument(metavar="QUERY", help="What to look for, in words.", show_default=False)
    ] = None,
    index: IndexName = "default",
    k: Annotated[int, typer.Option("-k", min=1, metavar="N", help="Number of results.")] = 10,
    image: Annotated[
        list[str] | None, typer.Option("--image", metavar="FILE", help="Look for pictures like FILE; may be repeated.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", metavar="MODEL", help="Where the model of the index is, if it was moved."),
    ] = None,
    paths: Annotated[bool, typer.Option("-l", "--paths", help="Print paths alone, one a line.")] = False,
    nul: Annotated[bool, typer.Option("-0", "--null", help="Print paths alone, each ended by NUL.")] = False,
    output: OutputFile = None,
    json: Json = False,
) -> Exit:
    """Find pictures by words or by a picture.

    The query is embedded with the model that made the index. Several texts and pictures add up to one query. Results
    come best first, with `rank` from 1 and `score`, the cosine: a table on a terminal, records on a pipe.
    """
    from vlmkit.index import Index, index_folder
    from vlmkit.models import name_of
    from vlmkit.search import check_model, query_vector
    from vlmkit.search import search as found

    if not query and not image:
        raise VlmkitError("nothing to look for", 'give words or --image FILE: vlmkit search "a red car"')
    with Index(index_folder(index)) as opened:
        loaded = run.load(model or name_of(opened.state.model or ""))
        check_model(opened, loaded)
        vector = query_vector(loaded.embedder, query or [], image or [])
        hits = list(found(opened, vector, " + ".join([*(query or []), *(image or [])]), k))
    with Output(output) as out:
        if paths or nul:
            out.write(b"".join(_path_of(hit) + (b"\0" if nul else b"\n") for hit in hits))
        elif output is None and not json and sys.stdout.isatty():
            _print_table(hits)
        else:
            out.write_records(hits)
    return Exit.OK if hits else Exit.NOTHING_FOUND


def _path_of(hit: "Record") -> bytes:
    return os.fsencode(str(hit.get("image") or hit["id"]))


def _print_table(hits: "Iterable[Record]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold")
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("picture", overflow="fold")
    for hit in hits:
        name = str(hit.get("image") or hit.get("text") or hit["id"])
        table.add_row(str(hit["rank"]), f"{hit['score']:.3f}", Text(one_line(name)))
    Console().print(table)


@command
def classify(
    run: Run,
    inputs: Inputs = None,
    output: OutputFile = None,
    model: EmbedModel = "mini",
    labels: Annotated[
        str | None, typer.Option("--labels", metavar="A,B,C", help="The labels, separated by commas.")
    ] = None,
    labels_file: Annotated[
        str | None, typer.Option("--labels-file", metavar="FILE", help="A file with one label a line.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            "--template", metavar="TEXT", help='Sentence with {} for the label, "a photo of a {}."; may be repeated.'
        ),
    ] = None,
    k: Annotated[
        int | None, typer.Option("-k", min=1, metavar="N", help="Number of labels to report; all without it.")
    ] = None,
    images: Images = None,
    nul: Nul = False,
    errors: Errors = None,
    json: Json = False,
) -> Exit:
    """Sort pictures by labels that you choose, without training.

    Each record gets `label`, the best one, and `labels`, all of them with probabilities: the softmax over the labels
    of cosine times the model's own logit scale. Records that bring an `embedding` of the same model are not opened.
    """
    from vlmkit.classify import DEFAULT_TEMPLATE, label_vectors, read_labels
    from vlmkit.classify import classify as classified
    from vlmkit.embed import vectors
    from vlmkit.inputs import Reading, read_inputs

    names = read_labels(labels, labels_file)
    items = read_inputs(inputs or [], Reading(nul=nul, images=images))
    with Failures(errors) as failures, Output(output) as out:
        loaded = run.load(model)
        targets = label_vectors(loaded.embedder, names, template or [DEFAULT_TEMPLATE])
        embedded = vectors(items, loaded, reuse=True, batch_size=run.batch_size, workers=run.threads)
        results = classified(embedded, names, targets, loaded.embedder.logit_scale, k or len(names))
        out.write_records(failures.sift(progress(results, quiet=run.quiet, unit="records")))
        return failures.verdict()


@command
def demo(run: Run) -> Exit:
    """Show what vlmkit does, on photographs that come with Python packages.

    Prints each command line before it runs it, in a temporary folder. Needs the extra `demo`.
    """
    from vlmkit.demo import demo as show

    show()
    return Exit.OK


def main(arguments: list[str]) -> int:
    """Run one command line; returns its exit code. The only place where an exception becomes a line and a code."""
    if "--debug" not in arguments:
        warnings.simplefilter("ignore")  # standard error is for one-line errors
    root = typer.main.get_command(app)
    try:
        code = root.main(arguments, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
        return code or Exit.OK
    except (ClosedPipe, BrokenPipeError, SystemExit):
        # typer ends with SystemExit where the reader of its help went away.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return Exit.OK
    except AlreadyTold:
        return Exit.FATAL
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        _explain(error)
        return Exit.FATAL


def _explain(error: Exception) -> None:
    context = getattr(error, "ctx", None)  # of typer's usage errors
    if isinstance(error, VlmkitError):
        tell(str(error))
    elif context is not None and type(error).__name__ == "NoArgsIsHelpError":
        print(context.get_help(), file=sys.stderr)
    elif isinstance(error, typer.TyperException):
        path = context.command_path if context else PROGRAM
        message = error.format_message().rstrip(".")
        parameter = getattr(error, "param", None)
        name = parameter.opts[0] if parameter is not None and parameter.opts and "for '" not in message else ""
        tell(f"{name + ': ' if name else ''}{message}: see {path} --help")
    elif isinstance(error, OSError):
        tell(f"{error.filename or 'input or output'}: {error.strerror or error}: check the name, the rights, the space")
    else:
        tell(f"{type(error).__name__} {error}: this is a defect of vlmkit, --debug shows where")

