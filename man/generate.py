"""Man pages, shell completions and the README's command reference, from the command table; licences, from what is here.

In the project's folder, `python man/generate.py` writes them and `python man/generate.py --check` tells what has
drifted (exit code 1).
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import costs
import dependencies
import environment
import pages
import prompts
from completions_bash import bash
from completions_fish import fish
from completions_zsh import zsh
from environment import Variable
from pages import roff

from vlmkit import __version__
from vlmkit.cli.app import command_line
from vlmkit.cli.command import LAST
from vlmkit.cli.examples import Example, examples
from vlmkit.cli.help import default_of, placeholder
from vlmkit.cli.options import PROGRAM, TAGLINE

COMPLETIONS = Path("vlmkit/cli/completions")
BLOCK = re.compile(r"(<!-- generated: (commands|environment|costs|prompts) -->\n).*?(<!-- end -->)", re.DOTALL)

EXIT_CODES = [
    ("0", "All went well; also when the reader of standard output went away."),
    ("1", "Nothing was found."),
    ("2", "Wrong usage or a fatal error: no file was changed; an index keeps what it had read."),
    ("3", "Finished, but some records failed; each is named on standard error."),
    ("130, 143, 129", "Stopped by SIGINT, SIGTERM or SIGHUP; no temporary file is left."),
]


@dataclass(frozen=True, slots=True)
class Flag:
    """One option of a command."""

    names: list[str]
    value: str  # what stands for the value, empty for a switch
    group: str
    help: str

    @property
    def spelled(self) -> str:
        return f"{', '.join(self.names)} {self.value}".rstrip()


@dataclass(frozen=True, slots=True)
class Command:
    """One command as the documents need it."""

    name: str
    summary: str
    text: list[str]  # paragraphs
    argument: str  # as in a usage line, may be empty
    argument_help: str
    flags: list[Flag]
    examples: list[Example]

    @property
    def usage(self) -> str:
        return " ".join(filter(None, [PROGRAM, self.name, "[OPTION]...", self.argument]))


def commands() -> list[Command]:
    """The command table, in its order."""
    root: Any = command_line()
    return [_command(name, command) for name, command in root.commands.items()]


def _command(name: str, command) -> Command:
    summary, *text = [" ".join(part.split()) for part in dedent(command.help).split("\n\n")]
    options = [p for p in command.params if p.param_type_name == "option"]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    return Command(
        name,
        summary,
        text,
        " ".join(map(placeholder, arguments)),
        " ".join(p.help for p in arguments),
        [*(_flag(command, option) for option in options), Flag(["-h", "--help"], "", LAST, "Print the help.")],
        examples().get(name, []),
    )


def _flag(command: Any, option: Any) -> Flag:
    value = "" if option.is_flag else option.metavar or "|".join(map(str, option.type_descriptor.annotation))
    default = f" Default: {default_of(option)}." if default_of(option) else ""
    variable = f" Environment: {option.envvar}." if option.envvar else ""
    topics = command.topics.only.get(option.name) if command.topics else None
    only = f" Only {', '.join(topics)}." if topics else ""
    names = [*sorted(option.opts, key=len), *option.secondary_opts]
    return Flag(names, value, command.groups[option.name], option.help + only + default + variable)


def _pairs(title: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    yield f".SH {title}"
    for name, text in rows:
        yield f".TP\n.B {roff(name)}\n{roff(text)}"


def _man_page(command: Command, variables: list[Variable]) -> str:
    title = f"{PROGRAM}-{command.name}"
    lines = [
        f'.TH {title.upper()} 1 "" "vlmkit {__version__}" "vlmkit manual"',
        f".SH NAME\n{roff(title)} \\- {roff(command.summary.rstrip('.'))}",
        f".SH SYNOPSIS\n.B {roff(command.usage)}",
        f".SH DESCRIPTION\n{roff(command.summary)}",
        *(f".PP\n{roff(paragraph)}" for paragraph in command.text),
    ]
    if command.argument:
        lines.append(f".PP\n.I {roff(command.argument)}\n{roff(command.argument_help)}")
    lines.append(".SH OPTIONS")
    for group in dict.fromkeys(flag.group for flag in command.flags):
        lines.append(f".SS {group}")
        for flag in command.flags:
            if flag.group == group:
                lines.append(f".TP\n.B {roff(flag.spelled)}\n{roff(flag.help)}")
    lines.append(".SH EXAMPLES")
    for example in command.examples:
        printed = f"\n{roff(example.prints)}" if example.prints else ""
        lines.append(f".PP\n{roff(example.what)}\n.PP\n.nf\n.RS 4\n{roff(example.line)}{printed}\n.RE\n.fi")
    lines += _pairs("EXIT STATUS", EXIT_CODES)
    lines += _pairs("ENVIRONMENT", [row[:2] for row in variables if command.name in (row.commands or [command.name])])
    lines.append(f".SH SEE ALSO\n.BR {PROGRAM} (1)")
    return "\n".join(lines) + "\n"


def _main_page(table: list[Command], variables: list[Variable]) -> str:
    lines = [
        f'.TH {PROGRAM.upper()} 1 "" "vlmkit {__version__}" "vlmkit manual"',
        f".SH NAME\n{PROGRAM} \\- {roff(TAGLINE.rstrip('.').lower())}",
        f".SH SYNOPSIS\n.B {PROGRAM}\n.I COMMAND\n[OPTION]...",
        ".SH DESCRIPTION\nCommands read and write records, one JSON object a line, so they can be joined by pipes.",
        *_pairs("COMMANDS", [(f"{PROGRAM}-{command.name}(1)", command.summary) for command in table]),
        *_pairs("EXIT STATUS", EXIT_CODES),
        *_pairs("ENVIRONMENT", [row[:2] for row in variables]),
    ]
    return "\n".join(lines) + "\n"


def _readme_block(table: list[Command]) -> str:
    lines = ["| command | what it does |", "|---|---|"]
    lines += [f"| `{command.usage}` | {command.summary} |" for command in table]
    return "\n".join(lines) + "\n"


def documents(root: Path) -> dict[Path, str]:
    """Every generated file of the project at `root` with its text."""
    table, variables = commands(), environment.variables(command_line().commands)
    blocks = {"commands": _readme_block(table), "environment": environment.table(variables)}
    blocks |= {"costs": costs.table(), "prompts": prompts.sections()}
    texts = {root / "man" / f"{PROGRAM}-{command.name}.1": _man_page(command, variables) for command in table}
    for source in [root / "README.md", *(root / "man").glob("*.md")]:
        text = BLOCK.sub(lambda found: found[1] + blocks[found[2]] + found[3], source.read_text())
        if BLOCK.search(text):
            texts[source] = text
        if source.parent != root:
            texts[source.with_name(pages.file_name(text))] = pages.page(text)
    return texts | {
        root / "man" / f"{PROGRAM}.1": _main_page(table, variables),
        root / COMPLETIONS / f"{PROGRAM}.bash": bash(command_line()),
        root / COMPLETIONS / f"_{PROGRAM}": zsh(command_line()),
        root / COMPLETIONS / f"{PROGRAM}.fish": fish(command_line()),
    }


def drifted(root: Path) -> list[Path]:
    """The generated files that differ from what the command table says; also files that no command stands for."""
    texts = documents(root)
    found = [path for pattern in ("man/*.[1-8]", f"{COMPLETIONS}/*") for path in root.glob(pattern)]
    strays = [path for path in found if path not in texts]
    return strays + [path for path, text in texts.items() if not path.exists() or path.read_text() != text]


def main(arguments: list[str]) -> int:
    root = Path()
    listing = root / "man" / f"{PROGRAM}-dependencies.md"
    if arguments == ["--check"]:
        found = drifted(root)
        wrong = list(dependencies.differences(root, listing.read_text()))
        for line in wrong:
            print(f"{listing}: {line}: run python man/generate.py", file=sys.stderr)
        for path in found:
            print(f"{path} has drifted: run python man/generate.py", file=sys.stderr)
        return 1 if found or wrong else 0
    listing.write_text(dependencies.updated(root, listing.read_text()))
    for path, text in documents(root).items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
