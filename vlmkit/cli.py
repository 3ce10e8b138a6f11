"""The commands: a few lines each, that call a room below. Options and the table they enter stand in options.py.

Heavy imports stand in the commands, so that starting up is quick.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from vlmkit.cli_ask import ask
from vlmkit.cli_chat import caption
from vlmkit.cli_download import download
from vlmkit.cli_eval import eval as evaluate
from vlmkit.cli_index import index
from vlmkit.cli_search import search
from vlmkit.cli_train import train
from vlmkit.errors import Exit, VlmkitError
from vlmkit.options import (
    PROGRAM,
    AllowPrivate,
    EmbedModel,
    EmbedPrecision,
    Errors,
    Format,
    Images,
    Inputs,
    Json,
    Nul,
    OutputFile,
    Run,
    app,
    command,
    valid_utf8,
)
from vlmkit.streams import AlreadyTold, ClosedPipe, Failures, Output, progress, tell

if TYPE_CHECKING:
    from vlmkit.inputs import Item
    from vlmkit.models import Model
    from vlmkit.records import Failed, Record


@command
def embed(
    run: Run,
    inputs: Inputs = None,
    output: OutputFile = None,
    model: EmbedModel = "mini",
    precision: EmbedPrecision = None,
    text: Annotated[bool, typer.Option("--text", help="Lines are texts; of records embed the field text.")] = False,
    form: Annotated[
        Format, typer.Option("--format", help="JSONL, or safetensors: smaller, and quicker to read.")
    ] = Format.JSONL,
    floats: Annotated[
        bool, typer.Option("--floats", help="The embedding as a list of numbers, not as base64 of float16.")
    ] = False,
    changed: Annotated[
        str | None,
        typer.Option(
            "--changed",
            metavar="INDEX",
            help="Only what is new, or has another time or size than in INDEX; if there is no INDEX yet, all.",
        ),
    ] = None,
    images: Images = None,
    nul: Nul = False,
    allow_private: AllowPrivate = False,
    errors: Errors = None,
    json: Json = False,
) -> Exit:
    """Turn pictures and texts into vectors.

    Reads pictures, folders, webdataset shards, URLs and records, and writes one record each with its vector in
    `embedding`. Pictures are rotated as their EXIF orientation says, transparent parts become white, and of an
    animation it is the first frame. One that cannot be read, or is not whole, is named, left out, and makes the exit
    code 3. A URL that is in the index of --changed is not fetched again.
    """
    from vlmkit.changed import changed as only_changed
    from vlmkit.embed import embed as embedded
    from vlmkit.embed import when_needed
    from vlmkit.index import index_folder
    from vlmkit.inputs import Reading, check_outputs, count_inputs, is_one_picture, read_inputs

    check_outputs(inputs or [], output, errors)
    if floats and form is Format.SAFETENSORS:
        raise VlmkitError("--floats is a form of JSONL", "leave out --floats or --format safetensors")
    if form is Format.SAFETENSORS and output in (None, "-") and sys.stdout is not None and sys.stdout.isatty():
        raise VlmkitError("safetensors data is not for a terminal", "use -o FILE or a pipe")
    reading = Reading(texts=text, nul=nul, images=images)
    items = read_inputs(inputs or [], reading)

    def vectorised(items: "Iterable[Item | Failed]", loaded: "Model") -> "Iterator[Record | Failed]":
        how = {"texts": text, "floats": floats, "allow_private": allow_private}
        return embedded(items, loaded, **how, batch_size=run.batch_size, workers=run.threads)

    lone = changed is None or list(map(is_one_picture, inputs or [])) == [True]
    with Failures(errors, lone=lone) as failures, Output(output) as out:
        if changed is None:
            results = vectorised(items, run.load(model, precision))
        else:
            new = only_changed(items, index_folder(changed))
            results = when_needed(new, lambda some: vectorised(some, run.load(model, precision)))
        count = partial(count_inputs, inputs or [], reading) if changed is None else lambda: None
        shown = progress(results, quiet=run.quiet, unit="records", count=count)
        out.write_records(failures.sift(shown), form.value)
        return failures.verdict()


command(index)


command(search)


@command
def classify(
    run: Run,
    inputs: Inputs = None,
    output: OutputFile = None,
    model: EmbedModel = "mini",
    precision: EmbedPrecision = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="A,B,C", help="The labels, separated by commas.", callback=valid_utf8),
    ] = None,
    labels_file: Annotated[
        str | None,
        typer.Option("--labels-file", metavar="FILE", help="A file with one label a line, - for standard input."),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            "--template",
            metavar="TEXT",
            callback=valid_utf8,
            help='Sentence with {} for the label, "a photo of a {}."; may be repeated.',
        ),
    ] = None,
    k: Annotated[
        int | None, typer.Option("-k", min=1, metavar="N", help="Number of labels to report; all without it.")
    ] = None,
    images: Images = None,
    nul: Nul = False,
    allow_private: AllowPrivate = False,
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
    from vlmkit.inputs import Reading, check_outputs, count_inputs, read_inputs

    check_outputs(inputs or [], output, errors)
    if labels_file == "-" and (not inputs or "-" in inputs):
        raise VlmkitError("labels and pictures cannot both come from standard input", "name the pictures")
    names = read_labels(labels, labels_file)
    reading = Reading(nul=nul, images=images)
    items = read_inputs(inputs or [], reading)
    with Failures(errors) as failures, Output(output) as out:
        loaded = run.load(model, precision)
        targets = label_vectors(loaded.embedder, names, template or [DEFAULT_TEMPLATE])
        embedded = vectors(
            items,
            loaded,
            reuse=True,
            batch_size=run.batch_size,
            workers=run.threads,
            allow_private=allow_private,
        )
        results = classified(embedded, names, targets, loaded.embedder.logit_scale, k or len(names))
        count = partial(count_inputs, inputs or [], reading)
        out.write_records(failures.sift(progress(results, quiet=run.quiet, unit="records", count=count)))
        return failures.verdict()


command(caption)


command(ask)


command(train)


command(evaluate)


command(download)


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
        if sys.stdout is not None:
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
        message = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".")
        tell(f"{message}: see {path} --help")
    elif isinstance(error, OSError):
        tell(f"{error.filename or 'input or output'}: {error.strerror or error}: check the name, the rights, the space")
    else:
        tell(f"{type(error).__name__} {error}: this is a defect of vlmkit, --debug shows where")
