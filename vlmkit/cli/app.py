"""The command table, and the one place where an exception becomes a line and an exit code."""

import os
import sys
import traceback
import warnings

import typer

from vlmkit.cli.ask import ask
from vlmkit.cli.caption import caption
from vlmkit.cli.classify import classify
from vlmkit.cli.demo import demo
from vlmkit.cli.download import download
from vlmkit.cli.embed import embed
from vlmkit.cli.eval import eval as evaluate
from vlmkit.cli.index import index
from vlmkit.cli.options import (
    PROGRAM,
    app,
    command,
)
from vlmkit.cli.search import search
from vlmkit.cli.train import train
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.terminal import AlreadyReported, ClosedPipe, warn

for each in (embed, index, search, classify, caption, ask, train, evaluate, download, demo):
    command(each)


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
    except AlreadyReported:
        return Exit.FATAL
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        _explain(error)
        return Exit.FATAL


def _explain(error: Exception) -> None:
    context = getattr(error, "ctx", None)  # of typer's usage errors
    if isinstance(error, VlmkitError):
        warn(str(error))
    elif context is not None and type(error).__name__ == "NoArgsIsHelpError":
        print(context.get_help(), file=sys.stderr)
    elif isinstance(error, typer.TyperException):
        path = context.command_path if context else PROGRAM
        message = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".")
        warn(f"{message}: see {path} --help")
    elif isinstance(error, OSError):
        warn(f"{error.filename or 'input or output'}: {error.strerror or error}: check the name, the rights, the space")
    else:
        warn(f"{type(error).__name__} {error}: this is a defect of vlmkit, --debug shows where")
