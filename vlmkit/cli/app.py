"""The command table, and the one place where an exception becomes a line and an exit code."""

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import takewhile
from typing import Annotated, Any, ClassVar, NamedTuple

import typer

from vlmkit.cli import completion
from vlmkit.cli.command import enter, option
from vlmkit.cli.completion import Shell
from vlmkit.cli.help import HelpfulGroup
from vlmkit.cli.options import PROGRAM, TAGLINE, Version
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.terminal import AlreadyReported, ClosedPipe, warn


class Entry(NamedTuple):
    """Where a command is, and the first line of its documentation, so that --help need not import it."""

    place: str
    summary: str


GROUPS = {  # what one wants, and the commands for it
    "Find": {
        "embed": Entry("vlmkit.cli.embed:embed", "Turn pictures and texts into vectors."),
        "index": Entry("vlmkit.cli.index:index", "Add embedded records to an index, or look after it."),
        "search": Entry("vlmkit.cli.search:search", "Find pictures by words, by pictures, or by both."),
    },
    "Describe": {
        "classify": Entry(
            "vlmkit.cli.classify:classify", "Sort pictures by labels that you choose, or by a trained head."
        ),
        "caption": Entry("vlmkit.cli.caption:caption", "Say what is on pictures."),
        "ask": Entry("vlmkit.cli.ask:ask", "Ask a question about pictures."),
    },
    "Learn and measure": {
        "train": Entry("vlmkit.cli.train:train", "Train a dual encoder, a vision-language model, or a classifier."),
        "eval": Entry("vlmkit.cli.eval:eval", "Score predictions with confidence intervals, and compare two models."),
    },
    "Share": {
        "serve": Entry(
            "vlmkit.cli.serve:serve",
            "Show a page over your pictures, and answer over HTTP with the interface of OpenAI's.",
        ),
    },
    "Fetch and try": {
        "download": Entry("vlmkit.cli.download:download", "Fetch data sets, models, and pictures by URL."),
        "demo": Entry("vlmkit.cli.demo:demo", "Show what vlmkit does, on photographs that come with Python packages."),
        "config": Entry("vlmkit.cli.config:config", "Show which options are set by config.toml or the environment."),
    },
}
SIMILAR = 0.75  # how alike, at least, what is suggested
SIMILAR_CHOICE = 0.65  # of a few short words
COMMANDS = {name: entry for group in GROUPS.values() for name, entry in group.items()}


class Root(HelpfulGroup):
    """The program, with the commands of the table."""

    listed: ClassVar = {title: {n: e.summary for n, e in group.items()} for title, group in GROUPS.items()}

    words: Sequence[str] = ()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        alone = args[-1:] == ["--install-completion"]
        self.words = [*args, completion.current_shell()] if alone else args
        return super().parse_args(ctx, list(self.words))

    def get_params(self, ctx: Any) -> list[Any]:
        """Those that are named: to convert the value of others, too, libraries would load that are slow."""
        named = {word.partition("=")[0] for word in takewhile(lambda word: word.startswith("-"), self.words)}
        known: list[Any] = super().get_params(ctx)
        return [param for param in known if named & set(param.opts)]


app = typer.Typer(
    cls=Root,
    help=TAGLINE,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


SHELLS = "|".join(Shell)
SHOW_HELP = "Print the completions for a shell."
INSTALL_HELP = "Put them where the shell looks for those of this user; without a name, for $SHELL."


@app.callback()
def _root(
    version: Version = False,
    show_completion: Annotated[
        Shell | None, option(f"--show-completion {SHELLS}", SHOW_HELP, callback=completion.show, is_eager=True)
    ] = None,
    install_completion: Annotated[
        Shell | None,
        option(f"--install-completion [{SHELLS}]", INSTALL_HELP, callback=completion.install, is_eager=True),
    ] = None,
) -> None:
    pass


def command_line(names: Iterable[str] = COMMANDS) -> Any:
    """The command line with the commands `names`: what is not used is not imported."""
    app.registered_commands.clear()
    for name in names:
        module, _, function = COMMANDS[name].place.partition(":")
        enter(app, getattr(importlib.import_module(module), function))
    return typer.main.get_command(app)


def main(arguments: list[str]) -> int:
    """Run one command line; returns its exit code. The only place where an exception becomes a line and a code."""
    if "--debug" not in arguments:
        warnings.simplefilter("ignore")  # so that errors stay on one line
    try:
        name = next(iter(arguments), "")
        if name and not name.startswith("-") and name not in COMMANDS:
            raise VlmkitError(f"no command is named {name}", _did_you_mean(name, COMMANDS) or f"see {PROGRAM} --help")
        root = command_line([name] if name in COMMANDS else [])
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
    elif type(error).__name__ == "NoSuchOption":
        warn(_unknown_option(error))
    elif isinstance(error, typer.TyperException):
        path = context.command_path if context else PROGRAM
        message = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".")
        warn(f"{message}: {_likely_choice(message) or f'see {path} --help'}")
    elif isinstance(error, OSError):
        warn(f"{error.filename or 'input or output'}: {error.strerror or error}: check the name, the rights, the space")
    else:
        warn(f"{type(error).__name__} {error}: this is a defect of vlmkit, --debug shows where")


def _did_you_mean(name: str, known: Iterable[str], similar: float = SIMILAR) -> str:
    return "".join(f"did you mean {near}?" for near in get_close_matches(name, known, 1, similar))


def _likely_choice(message: str) -> str:
    """A question for the value that may be meant, where `message` of typer lists those that there are."""
    before, one_of, after = message.rpartition(" is not one of ")
    value, known = before.rpartition(": ")[2].strip("'"), after.replace("'", "").split(", ")
    return _did_you_mean(value, known, SIMILAR_CHOICE) if one_of else ""


def _unknown_option(error: Any) -> str:
    """What to write in place of an option that the command does not have, or which commands have it."""
    name, context = error.option_name, error.ctx
    others = [other for other, command in command_line().commands.items() if name in _flags(command)]
    if others and context.parent:
        return f"{name} is not for {context.command.name}: leave it out, it is for {', '.join(others)}"
    near = _did_you_mean(name, _flags(context.command))
    return f"unknown option {name}: {near or f'see {context.command_path} --help'}"


def _flags(command: Any) -> list[str]:
    return [flag for param in command.params for flag in (*param.opts, *param.secondary_opts) if flag.startswith("-")]
