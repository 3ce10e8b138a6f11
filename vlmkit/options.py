"""Options, each declared once, and the decorator that enters a command into the command table."""

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmkit import __version__
from vlmkit.errors import Exit
from vlmkit.examples import EXAMPLES
from vlmkit.streams import Output, tell

if TYPE_CHECKING:
    from vlmkit.models import Model

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
        Output().write(f"{PROGRAM} {__version__}\n".encode())
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
    batch_size: Annotated[
        int,
        typer.Option(min=0, max=65_536, metavar="N", help="Pictures or texts in one batch; 0 for what suits."),
    ] = 0
    workers: Annotated[int, typer.Option(min=0, metavar="N", help="Threads that decode; 0 for one a core.")] = 0
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of everything random.")] = 0
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no notes; errors are still told.")] = (
        False
    )
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say which model and device are used.")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False
    version: Version = False

    def batch(self, suits: int) -> int:
        return self.batch_size or suits

    @property
    def threads(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))

    def load(self, name: str) -> "Model":
        """The model called `name`, on this device."""
        from vlmkit.models import Hardware, load_embedder

        model = load_embedder(name, Hardware(self.device.value))
        if self.verbose and not self.quiet:
            tell(f"model {model.identity}, device {model.embedder.device}")
        return model


Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT",
        help=(
            "Pictures, http(s) URLs, folders with all below them but what is hidden, .tar shards, .jsonl or .json "
            "records, safetensors, - for standard input: records, or a list of names."
        ),
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
Nul = Annotated[
    bool, typer.Option("-0", "--null", help="Names on standard input end in NUL, as find -print0 writes them.")
]
AllowPrivate = Annotated[
    bool,
    typer.Option("--allow-private", help="Fetch from private and local addresses too, and through the proxies set."),
]
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
