"""Options that several commands share."""

import contextlib
import os
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from vlmkit import __version__
from vlmkit.cli.command import FILES, LAST, RUNNING, option
from vlmkit.cli.defaults import named_model
from vlmkit.cli.screen import for_person
from vlmkit.errors import VlmkitError, one_line
from vlmkit.io.limits import MAX_PIXELS, MAX_PIXELS_VARIABLE
from vlmkit.io.terminal import Output, stderr_is_terminal, warn

if TYPE_CHECKING:
    from vlmkit.io.inputs import Reading
    from vlmkit.io.summary import Summary
    from vlmkit.io.walk import LeftOut
    from vlmkit.models.types import ChatModel, Embedder, EndpointOptions

PROGRAM = "vlmkit"
MODEL = "Model"  # a heading
TAGLINE = "Composable commands for pictures and language."


def _print_version(wanted: bool) -> None:
    if wanted:
        Output().write(f"{PROGRAM} {__version__}\n".encode())
        raise typer.Exit


Version = Annotated[bool, option("-V, --version", "Print the version.", callback=_print_version, is_eager=True)]


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class Precision(StrEnum):
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


AUTO = 0  # the batch size that suits
LARGEST_BATCH = 65_536


def _batch_size(text: str | int) -> int:
    """`auto` or a number."""
    with contextlib.suppress(ValueError):
        if 0 <= (size := AUTO if text == "auto" else int(text)) <= LARGEST_BATCH:
            return size
    raise ValueError(f"{text!r} is not auto or a number from 1 to {LARGEST_BATCH}")


def _pages(text: str) -> str:
    """`text` as it is. Raises ValueError unless it names pages."""
    from vlmkit.io.parts import page_ranges

    page_ranges(text)
    return text


def seconds(text: str | float) -> float:
    """`2`, `2s`, `500ms`, `1m` or `1h` in seconds."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)\s*(ms|s|m|min|h)?", str(text).strip())
    value = float(found[1]) * {"ms": 0.001, "m": 60, "min": 60, "h": 3600}.get(found[2], 1) if found else 0
    if value < 0.001:
        raise ValueError(f"{text!r} is not a time such as 2s, 500ms or 1m")
    return round(value, 6)


def valid_utf8(text: str | list[str] | None) -> str | list[str] | None:
    """`text` unchanged. Raises VlmkitError where it has bytes that are not UTF-8."""
    for one in [text] if isinstance(text, str) else text or []:
        try:
            one.encode()
        except UnicodeEncodeError:
            raise VlmkitError(f"{one_line(one)} is not UTF-8", "write it in UTF-8, see locale") from None
    return text


def hand_on_max_pixels(number: int | None) -> None:
    """Let the processes that this one starts know --max-pixels, too."""
    if number is not None:
        os.environ[MAX_PIXELS_VARIABLE] = str(number)


MaxPixels = Annotated[
    int | None,
    option(
        "--max-pixels N",
        "Refuse pictures of more pixels.",
        min=1,
        envvar=MAX_PIXELS_VARIABLE,
        show_default=f"{MAX_PIXELS:,}",
        group=RUNNING,
    ),
]
RunsOn = Annotated[
    Device, option("--device", "Where models run; auto takes CUDA, then MPS, then the CPU.", show_default="auto")
]
Workers = Annotated[int, option("--workers N", "Threads that decode; 0 for one a core.", min=0)]
Seed = Annotated[int | None, option("--seed N", "Seed of everything random.", min=0, show_default="0", group=RUNNING)]


def served_name(via: str, name: str) -> str:
    """How `load_embedder` calls the model `name` of the service at `via`. Raises VlmkitError."""
    if not via.lower().startswith(("http://", "https://")) or "#" in via:
        raise VlmkitError(f"--via {via} is not the URL of a service", "write --via http://HOST:PORT")
    return f"{via}#{name}"


def check_via(via: str | None, precision: object) -> None:
    """Raise VlmkitError where a model of a service is to run in a precision."""
    if via is not None and precision is not None:
        raise VlmkitError("--precision excludes --via", "the service has a precision of its own")


def cores(workers: int) -> int:
    """The threads that --workers asks for."""
    return workers or len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Common:
    """The options that every command has."""

    title: ClassVar[str] = LAST
    quiet: Annotated[bool, option("-q, --quiet", "No progress and no notes; errors are still printed.")] = False
    verbose: Annotated[bool, option("-v, --verbose", "Say which model, device and precision are used.")] = False
    debug: Annotated[bool, option("--debug", "Show a traceback when something fails.")] = False
    version: Version = False

    def summary(
        self, left_out: "LeftOut | None" = None, *, brief: bool = False, skipped: str = "skipped", target: str = ""
    ) -> "Summary | None":
        """The summary of this run; None with --quiet. A `brief` one tells no more on a terminal than elsewhere."""
        from vlmkit.io.summary import Summary

        whole = self.verbose or (stderr_is_terminal() and not brief)
        return None if self.quiet else Summary(left_out, whole=whole, skipped=skipped, target=target)


@dataclass(frozen=True, slots=True)
class Run(Common):
    """The options of commands that run a model over pictures or texts."""

    title: ClassVar[str] = RUNNING
    device: RunsOn = Device.AUTO
    batch_size: Annotated[
        int,
        option(
            "--batch-size N",
            "Pictures or texts in one batch; auto or 0 for what suits the device.",
            parser=_batch_size,
            show_default="auto",
        ),
    ] = AUTO
    workers: Workers = 0
    max_pixels: MaxPixels = None

    def __post_init__(self) -> None:
        hand_on_max_pixels(self.max_pixels)

    def batch(self, suits: int) -> int:
        return self.batch_size or suits

    @property
    def threads(self) -> int:
        return cores(self.workers)

    def load(
        self, name: str, precision: Precision | None = None, via: str | None = None, *, quick_texts: bool = False
    ) -> "Embedder":
        """The model called `name`, on this device or of the service at the URL `via`.

        With `quick_texts` texts start without PyTorch, if they can.
        """
        from vlmkit.io.records import name_of
        from vlmkit.models.load import INT8, load_embedder
        from vlmkit.models.types import Hardware

        check_via(via, precision)
        if via is not None:
            name = served_name(via, name)
        hardware = Hardware(self.device.value, precision=precision.value if precision else None)
        chatty = not self.quiet and stderr_is_terminal()
        note = warn if self.verbose and not self.quiet else lambda _: None
        model = load_embedder(
            name, hardware, quick_texts=quick_texts, warn=warn if chatty else lambda _: None, note=note
        )
        used = "int8" if name_of(model.identity).endswith(INT8) else hardware.precision or "fp32"
        note(f"model {model.identity}, device {model.device}, precision {used}")
        return model

    def load_chat_model(self, name: str, endpoint: "EndpointOptions") -> "ChatModel":
        """The chat model called `name`, on this device or at an endpoint."""
        from vlmkit.models.load import load_chat_model
        from vlmkit.models.types import Hardware

        model = load_chat_model(name, Hardware(self.device.value), endpoint)
        if self.verbose and not self.quiet:
            warn(f"model {model.identity}, device {model.device}")
        return model


Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT",
        help=(
            "Pictures, PDF documents, http(s) URLs, folders with all below but hidden ones and links to folders, .tar "
            "shards, also by URL, .jsonl or .json records, safetensors, - for standard input: records, "
            "or a list of names."
        ),
        show_default=False,
    ),
]
OutputFile = Annotated[
    str | None,
    option("-o, --output FILE", "Write to FILE, completely or not at all; - is standard output.", group=FILES),
]
PAGES_HELP = "Of PDF documents these pages alone, counted from 1: 1-5 or 1,3,10-."
EVERY_HELP = "Of films one frame each TIME: 2s, 500ms, 1m. Default: where the scene changes, and one in 10 s."
FRAMES_HELP = "At most N frames of one film, spread over it; ask: 8 unless --every says how many."
EXCLUDE_HELP = "Skip files and folders of that name in folders; with a slash, of that path; may be repeated."
IGNORE_HELP = "Failures listed in FILE, of --errors, are known and do not count, unless their file is newer than FILE."
NO_DEFAULTS_HELP = "Do not skip hidden ones, @eaDir, #recycle, lost+found, node_modules and the like in folders."
Errors = Annotated[str | None, option("--errors FILE", "Write failed records to FILE: id, image, error.", group=FILES)]
Ignore = Annotated[str | None, option("--ignore FILE", IGNORE_HELP, group=FILES)]
EMBED_MODEL_VARIABLE = "VLMKIT_EMBED_MODEL"


def model_option(help: str, envvar: str | None = None) -> Any:
    """-m; eager, as the options that config.toml gives to a model are defaults of the others."""
    return option("-m, --model MODEL", help, envvar=envvar, callback=named_model, is_eager=True, group=MODEL)


EmbedModelName = Annotated[str, model_option("Model that embeds: a name or a folder.", EMBED_MODEL_VARIABLE)]
ChatModelName = Annotated[
    str, model_option("Model that answers: a name or a folder; openai:NAME of an endpoint.", "VLMKIT_CHAT_MODEL")
]
EmbedPrecision = Annotated[
    Precision | None,
    option(
        "--precision",
        "Numbers that the model computes with. The vectors of int8 count as another model's.",
        show_default="fp32",
        group=MODEL,
    ),
]
Via = Annotated[
    str | None,
    option(
        "--via URL",
        "Use the model of the vlmkit serve that runs at URL; the token is $VLMKIT_TOKEN.",
        envvar="VLMKIT_SERVER",
        group=MODEL,
    ),
]


def _one_a_line(names: str | list[str]) -> str:
    """Names as one text: what the command line repeats comes as a list, but a text from everywhere else."""
    return names if isinstance(names, str) else "\n".join(names)


IndexName = Annotated[
    str,
    option(
        "-i, --index INDEX",
        "Index: a path (has / or .) or a name under $XDG_DATA_HOME/vlmkit.",
        envvar="VLMKIT_INDEX",
        group="Index",
    ),
]
IndexNames = Annotated[
    str,
    option(
        "-i, --index INDEX",
        "Index: a path (has / or .), a name under $XDG_DATA_HOME/vlmkit, qdrant:URL/NAME. Repeated: as if merged.",
        envvar="VLMKIT_INDEX",
        group="Index",
        parser=_one_a_line,
        repeats=True,
    ),
]
Images = Annotated[str | None, option("--images DIR", "Folder of relative image fields in records.", group=FILES)]
Nul = Annotated[
    bool, option("-0, --null", "Names on standard input end in NUL, as find -print0 writes them.", group=FILES)
]
AllowPrivate = Annotated[
    bool,
    option("--allow-private", "Fetch from private and local addresses too, and through the proxies set.", group=FILES),
]
Json = Annotated[bool, option("--json", "Records out, one JSON object a line, on a terminal too.", group=FILES)]


@dataclass(frozen=True, slots=True)
class Records:
    """Where records come from and go to."""

    title: ClassVar[str] = FILES
    output: OutputFile = None
    images: Images = None
    nul: Nul = False
    allow_private: AllowPrivate = False
    errors: Errors = None
    ignore: Ignore = None
    json: Json = False
    follow: Annotated[bool, option("--follow", "Follow links to folders in folders; each file is still read once.")] = (
        False
    )
    exclude: Annotated[list[str] | None, option("--exclude GLOB", EXCLUDE_HELP, show_default=False)] = None
    no_default_excludes: Annotated[bool, option("--no-default-excludes", NO_DEFAULTS_HELP)] = False
    pages: Annotated[str | None, option("--pages PAGES", PAGES_HELP, parser=_pages)] = None
    every: Annotated[float | None, option("--every TIME", EVERY_HELP, parser=seconds)] = None
    frames: Annotated[int | None, option("--frames N", FRAMES_HELP, min=1)] = None

    @property
    def as_records(self) -> bool:
        """Whether records are wanted where text is the default: by --json, or by the name of the output file."""
        return self.json or (self.output or "").lower().endswith((".jsonl", ".json", ".safetensors", ".parquet"))

    @property
    def for_person(self) -> bool:
        """Whether a person reads the output: on a terminal, unless records are wanted."""
        return for_person(self.output, self.json)

    def reading(self, *, texts: bool = False, piped_picture: bool = False, one_picture: bool = False) -> "Reading":
        """How INPUT is read; `texts`: lines are texts, whatever they begin with."""
        from vlmkit.io.inputs import Reading
        from vlmkit.io.parts import Choice, page_ranges
        from vlmkit.io.walk import WalkOptions, normalized_glob

        walk = WalkOptions(
            self.follow, tuple(filter(None, map(normalized_glob, self.exclude or ()))), not self.no_default_excludes
        )
        return Reading(
            texts,
            self.nul,
            self.images,
            piped_picture,
            records=not texts,
            one_picture=one_picture,
            allow_private=self.allow_private,
            walk=walk,
            choice=Choice(page_ranges(self.pages) if self.pages else None, self.every, self.frames),
        )

    def check(self, inputs: list[str] | None) -> list[str]:
        """`inputs` as a list. Raises VlmkitError where one of them would be overwritten."""
        from vlmkit.io.inputs import check_outputs

        check_outputs(inputs or [], self.output, self.errors, self.ignore)
        return inputs or []


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """The model of commands that embed."""

    title: ClassVar[str] = MODEL
    model: EmbedModelName = "mini"
    precision: EmbedPrecision = None
    via: Via = None

    def load(self, run: Run) -> "Embedder":
        return run.load(self.model, self.precision, self.via)


class Format(StrEnum):
    JSONL = "jsonl"
    SAFETENSORS = "safetensors"
    PARQUET = "parquet"
