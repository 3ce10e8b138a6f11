"""Man pages, shell completions and the README's command reference, from the command table; licences, from what is here.

In the project's folder, `python man/generate.py` writes them and `python man/generate.py --check` tells what has
drifted (exit code 1).
"""

import enum
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import dependencies
import environment
import pages
from environment import Variable
from pages import roff

from vlmkit import __version__
from vlmkit.cli.app import command_line
from vlmkit.cli.examples import Example, examples
from vlmkit.cli.help import default_of, placeholder
from vlmkit.cli.options import PROGRAM, TAGLINE

MODELS = ["mini"]  # that are called by a name alone
DATA = "${XDG_DATA_HOME:-$HOME/.local/share}/vlmkit"
BLOCK = re.compile(r"(<!-- generated: (commands|environment) -->\n).*?(<!-- end -->)", re.DOTALL)

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
    choices: list[str]
    help: str


@dataclass(frozen=True, slots=True)
class Command:
    """One command as the documents need it."""

    name: str
    summary: str
    text: list[str]  # paragraphs
    argument: str  # as in a usage line, may be empty
    argument_help: str
    argument_choices: list[str]
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
        _choices(arguments[0]) if arguments else [],
        [*map(_flag, options), Flag(["-h", "--help"], "", [], "Print the help.")],
        examples().get(name, []),
    )


def _choices(parameter: Any) -> list[str]:
    """The values of an option or argument, where they are few and known; of -m those that are no folder."""
    kind = parameter.type_descriptor.annotation
    if isinstance(kind, enum.EnumType):
        return list(map(str, kind))
    return MODELS if parameter.metavar == "MODEL" else []


def _flag(option) -> Flag:
    choices = _choices(option)
    value = "" if option.is_flag else option.metavar or "|".join(choices)
    default = f" Default: {default_of(option)}." if default_of(option) else ""
    variable = f" Environment: {option.envvar}." if option.envvar else ""
    return Flag(option.opts, value, choices, option.help + default + variable)


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
    flags = [(", ".join(flag.names) + (f" {flag.value}" if flag.value else ""), flag.help) for flag in command.flags]
    lines += _pairs("OPTIONS", flags)
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


def _bash(table: list[Command]) -> str:
    cases, firsts = [], []
    for command in table:
        if command.argument_choices:
            firsts.append(f'            {command.name}) words="{" ".join(command.argument_choices)}" ;;')
        words = " ".join(name for flag in command.flags for name in flag.names)
        cases.append(f'        {command.name}) words="{words}" ;;')
    choices = sorted({(name, " ".join(f.choices)) for c in table for f in c.flags if f.choices for name in f.names})
    values = "\n".join(f'        {name}) words="{listed}" ;;' for name, listed in choices)
    return f"""# bash completion for {PROGRAM}, generated by man/generate.py
_{PROGRAM}() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    COMPREPLY=()
    case "$previous" in
{values}
        -i | --index) words="$(ls "{DATA}" 2>/dev/null)" ;;
    esac
    if ((COMP_CWORD == 2)) && [[ "$current" != -* ]]; then
        case "${{COMP_WORDS[1]}}" in
{chr(10).join(firsts)}
        esac
    fi
    if [[ -n "$words" ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$current"))
        return
    fi
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "{" ".join(c.name for c in table)} --help --version" -- "$current"))
        return
    fi
    [[ "$current" == -* ]] || return
    case "${{COMP_WORDS[1]}}" in
{chr(10).join(cases)}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -o bashdefault -F _{PROGRAM} {PROGRAM}
"""


def _zsh(table: list[Command]) -> str:
    def quoted(text: str) -> str:
        return re.sub(r"([\[\]:\\])", r"\\\1", text).replace("'", "'\\''")

    def spec(flag: Flag) -> str:
        names = f"'({' '.join(flag.names)})'{{{','.join(flag.names)}}}" if len(flag.names) > 1 else flag.names[0]
        if not flag.value:
            value = ""
        elif flag.value in ("INDEX", "MODEL"):
            value = f":{flag.value}:_{PROGRAM}_{flag.value.lower()}"
        elif flag.choices:
            value = f":value:({' '.join(flag.choices)})"
        else:
            value = f":{flag.value}:{'_files -/' if flag.value == 'DIR' else '_files'}"
        return f"            {names}'[{quoted(flag.help)}]{value}' \\"

    def first(command: Command) -> str:
        listed = " ".join(command.argument_choices)
        return f"\n            '1:{command.argument.split()[0]}:({listed})' \\" if listed else ""

    cases = "\n".join(
        f"        {command.name})\n        _arguments -S \\\n"
        + "\n".join(map(spec, command.flags))
        + first(command)
        + "\n            '*:input:_files' ;;"
        for command in table
    )
    listed = "\n".join(f"        '{c.name}:{quoted(c.summary)}'" for c in table)
    return f"""#compdef {PROGRAM}
# zsh completion for {PROGRAM}, generated by man/generate.py
_{PROGRAM}_index() {{
    local -a names=({DATA}/*(N/:t))
    _alternative "names:index:($names)" 'folders:folder:_files -/'
}}
_{PROGRAM}_model() {{
    _alternative 'names:model:({" ".join(MODELS)})' 'folders:folder:_files -/'
}}
_{PROGRAM}() {{
    local -a commands=(
{listed}
    )
    if ((CURRENT == 2)); then
        _describe command commands
        return
    fi
    local name=$words[2]
    shift words
    ((CURRENT--))
    case $name in
{cases}
    esac
}}
_{PROGRAM} "$@"
"""


def _fish(table: list[Command]) -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    data = "(set -q XDG_DATA_HOME; and echo $XDG_DATA_HOME; or echo ~/.local/share)"
    names_of_indexes = f"(ls {data}/vlmkit 2>/dev/null)"
    lines = [f"# fish completion for {PROGRAM}, generated by man/generate.py"]
    for command in table:
        first = f"complete -c {PROGRAM} -n __fish_use_subcommand -f"
        lines.append(f"{first} -a {command.name} -d {quoted(command.summary)}")
        if command.argument_choices:
            first = f"complete -c {PROGRAM} -n '__fish_seen_subcommand_from {command.name}'"
            lines.append(f"{first} -a {quoted(' '.join(command.argument_choices))}")
        for flag in command.flags:
            names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in flag.names)
            listed = names_of_indexes if flag.value == "INDEX" else " ".join(flag.choices)
            only = "r" if flag.value in ("INDEX", "MODEL") else "x"
            value = f" -{only} -a {quoted(listed)}" if listed else " -r" if flag.value else ""
            seen = f"'__fish_seen_subcommand_from {command.name}'"
            lines.append(f"complete -c {PROGRAM} -n {seen} {names}{value} -d {quoted(flag.help)}")
    return "\n".join(lines) + "\n"


def _readme_block(table: list[Command]) -> str:
    lines = ["| command | what it does |", "|---|---|"]
    lines += [f"| `{command.usage}` | {command.summary} |" for command in table]
    return "\n".join(lines) + "\n"


def documents(root: Path) -> dict[Path, str]:
    """Every generated file of the project at `root` with its text."""
    table, variables = commands(), environment.variables(command_line().commands)
    blocks = {"commands": _readme_block(table), "environment": environment.table(variables)}
    texts = {root / "man" / f"{PROGRAM}-{command.name}.1": _man_page(command, variables) for command in table}
    for source in [root / "README.md", *(root / "man").glob("*.md")]:
        text = BLOCK.sub(lambda found: found[1] + blocks[found[2]] + found[3], source.read_text())
        if BLOCK.search(text):
            texts[source] = text
        if source.parent != root:
            texts[source.with_name(pages.file_name(text))] = pages.page(text)
    return texts | {
        root / "man" / f"{PROGRAM}.1": _main_page(table, variables),
        root / "completions" / f"{PROGRAM}.bash": _bash(table),
        root / "completions" / f"_{PROGRAM}": _zsh(table),
        root / "completions" / f"{PROGRAM}.fish": _fish(table),
    }


def drifted(root: Path) -> list[Path]:
    """The generated files that differ from what the command table says; also files that no command stands for."""
    texts = documents(root)
    found = [path for pattern in ("man/*.[1-8]", "completions/*") for path in root.glob(pattern)]
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
