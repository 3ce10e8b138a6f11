"""The help of a command: an example first, options in groups with their defaults, what a stage or task takes alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import cleandoc
from textwrap import fill
from typing import Any, ClassVar, NamedTuple

import typer.core

from vlmkit.cli.examples import Example, examples

NAMES_WIDTH = 26  # of the column with the names of options


class Topic(NamedTuple):
    """A value of a command's first argument as help and completions show it, such as a stage of train.

    `text` are paragraphs; `defaults` and `values` (what completes) are by the name of the parameter.
    """

    text: str
    defaults: Mapping[str, str] = {}
    values: Mapping[str, Sequence[str]] = {}


@dataclass(frozen=True, slots=True)
class Topics:
    """The values of a command's first argument, `title` together.

    `only` names the topics that use a parameter, where not all do; others refuse it, where `refuses` says so.
    """

    title: str
    describe: Callable[[str], Topic]
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    refuses: bool = True

    def uses(self, topic: str, parameter: str) -> bool:
        """Whether `topic` uses the parameter; without a topic, whether all do."""
        return parameter not in self.only or topic in self.only[parameter]


class HelpfulCommand(typer.core.TyperCommand):
    """A command whose options stand in `groups`, by parameter name; `topics` are those of its first argument."""

    groups: ClassVar[Mapping[str, str]] = {}
    topics: ClassVar[Topics | None] = None
    topic = ""  # that the command line names

    @property
    def topic_names(self) -> list[str]:
        """The topics, in their order."""
        if not self.topics:
            return []
        return list(map(str, self.arguments[0].type_descriptor.annotation))

    @property
    def arguments(self) -> list[Any]:
        return [param for param in self.params if param.param_type_name == "argument"]

    def options_by_group(self, ctx: Any) -> dict[str, list[Any]]:
        """The options of `topic`, by the name of their group; that of -h, --help comes last."""
        found: dict[str, list[Any]] = {}
        param: Any
        for param in self.get_params(ctx):
            used = self.topics is None or self.topics.uses(self.topic, param.name)
            if param.param_type_name == "option" and not param.hidden and used:
                group = self.groups.get(param.name) or next(reversed(found), "Options")
                found.setdefault(group, []).append(param)
        return found

    def format_help(self, ctx: Any, formatter: Any) -> None:
        topic = self.topics.describe(self.topic) if self.topics and self.topic else None
        summary, *text = cleandoc(topic.text if topic else self.help or "").split("\n\n")
        arguments = self.arguments[bool(topic) :]
        shown = list(_examples(self.name or "", self.topic))
        formatter.write_usage(
            f"{ctx.command_path} {self.topic}".rstrip(), " ".join(["[OPTION]...", *map(placeholder, arguments)])
        )
        _write_text(formatter, [summary])
        if shown:
            _write_examples(formatter, "Example", shown[:1])
        if self.topics and not topic:
            rows = [(name, _first_sentence(self.topics.describe(name).text)) for name in self.topic_names]
            _write_rows(formatter, self.topics.title, rows)
            _write_text(formatter, [f"{ctx.command_path} {arguments[0].metavar} --help shows what each takes."])
        if arguments := [param for param in arguments if topic or not self.topics or param.nargs == -1]:
            _write_rows(formatter, "Arguments", [(placeholder(param), param.help) for param in arguments])
        defaults = topic.defaults if topic else {}
        for title, options in self.options_by_group(ctx).items():
            rows = [_row(param, ctx, defaults.get(param.name)) for param in options]
            _write_rows(formatter, title, rows, NAMES_WIDTH)
        if text:
            with formatter.section("Details"):
                for number, paragraph in enumerate(text):
                    if number:
                        formatter.write_paragraph()
                    formatter.write_text(" ".join(paragraph.split()))
        if shown[1:]:
            _write_examples(formatter, "More examples", shown[1:])


class HelpfulGroup(typer.core.TyperGroup):
    """The program: its commands stand by what one wants, without being imported."""

    listed: ClassVar[Mapping[str, Mapping[str, str]]] = {}  # summaries by command by group

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        formatter.write_usage(ctx.command_path, "COMMAND [OPTION]... [ARGUMENT]...")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        width = max(len(name) for commands in self.listed.values() for name in commands)
        for title, commands in self.listed.items():
            _write_rows(formatter, title, list(commands.items()), width)
        options = [*self.params, self.get_help_option(ctx)]
        _write_rows(formatter, "Options", [_row(param, ctx) for param in options])
        _write_text(formatter, [f"{ctx.command_path} COMMAND --help shows the options of a command, with examples."])


def placeholder(argument: Any) -> str:
    """The argument as a usage line shows it."""
    name = argument.metavar if argument.required else f"[{argument.metavar}]"
    return name + "..." * (argument.nargs == -1)


def default_of(option: Any) -> str:
    """The default as text, empty where there is none to show."""
    if isinstance(option.show_default, str):
        return option.show_default
    switch_off = option.is_flag and not (option.default and option.secondary_opts)
    return (
        "" if option.default in (None, "") or switch_off else "on" if option.default is True else _plain(option.default)
    )


def _plain(default: Any) -> str:
    if isinstance(default, float):
        return f"{default:g}"
    return f"{default:,}" if isinstance(default, int) and default >= 100_000 else str(default)


def _row(param: Any, ctx: Any, default: str | None = None) -> tuple[str, str]:
    """Names and value of an option, and its help with what counts where it is not given."""
    short = any(len(name) == 2 for name in param.opts)
    names = ("" if short else "    ") + ", ".join(sorted(param.opts, key=len))
    names += "".join(f"/{name}" for name in param.secondary_opts)
    if not param.is_flag:
        names += f" {param.metavar or param.display_type(ctx).strip('<>')}"
    if (configured := (ctx.default_map or {}).get(param.name)) is not None:
        shown = {True: "on", False: "off"}.get(configured) if param.is_flag else None
        default = f"{shown or (', '.join(configured) if param.multiple else configured)}, of config.toml"
    notes = {"default": default_of(param) if default is None else default, "environment": param.envvar}
    shown = "; ".join(f"{name}: {value}" for name, value in notes.items() if value)
    return names, (param.help or "") + (f" [{shown}]" if shown else "")


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def _examples(command: str, topic: str) -> Iterator[Example]:
    for example in examples().get(command, []):
        if f"vlmkit {command} {topic}".rstrip() in example.line:
            yield example


def _write_text(formatter: Any, paragraphs: Sequence[str]) -> None:
    for paragraph in paragraphs:
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(" ".join(paragraph.split()))


def _write_rows(formatter: Any, title: str, rows: Sequence[tuple[str, str]], width: int = 0) -> None:
    with formatter.section(title):
        formatter.write_dl([(f"{name:{width}}", text) for name, text in rows], col_max=NAMES_WIDTH)


def _write_examples(formatter: Any, title: str, shown: Sequence[Example]) -> None:
    """Shell lines are not wrapped, so that they can be copied."""
    with formatter.section(title):
        for example in shown:
            what = fill(example.what, formatter.width, initial_indent="  # ", subsequent_indent="  # ")
            formatter.write(f"{what}\n  {example.line}\n")
