"""The command table, and the one place where an exception becomes a line and an exit code."""

import importlib
import os
import sys
import traceback
import warnings
from typing import Any

import typer

from vlmkit.cli.options import PROGRAM, app, command
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.terminal import AlreadyReported, ClosedPipe, warn

COMMANDS = {
    "embed": "vlmkit.cli.embed:embed",
    "index": "vlmkit.cli.index:index",
    "search": "vlmkit.cli.search:search",
    "classify": "vlmkit.cli.classify:classify",
    "caption": "vlmkit.cli.caption:caption",
    "ask": "vlmkit.cli.ask:ask",
    "train": "vlmkit.cli.train:train",
    "eval": "vlmkit.cli.eval:eval",
    "download": "vlmkit.cli.download:download",
    "demo": "vlmkit.cli.demo:demo",
}


def command_line(only: str | None = None) -> Any:
    """The command line with all commands, or with the one called `only`: what is not used is not imported."""
    app.registered_commands.clear()
    for name in [only] if only in COMMANDS else COMMANDS:
        module, _, function = COMMANDS[name].partition(":")
        command(getattr(importlib.import_module(module), function))
    return typer.main.get_command(app)


def main(arguments: list[str]) -> int:
    """Run one command line; returns its exit code. The only place where an exception becomes a line and a code."""
    if "--debug" not in arguments:
        warnings.simplefilter("ignore")  # so that errors stay on one line
    try:
        root = command_line(arguments[0] if arguments else None)
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
    except Exception as error:  # whatever it is, it ends in one line and an exit code
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
