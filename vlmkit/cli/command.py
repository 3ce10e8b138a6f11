"""What stands behind every command: its options under their headings, and which of them go together."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, NamedTuple

import typer

from vlmkit.cli.defaults import ConfiguredCommand, is_given
from vlmkit.errors import Exit, VlmkitError

OPTIONS, FILES, RUNNING, LAST = "Options", "Reading and writing", "Running", "Every command"
EVERYWHERE = ("--device", "--batch-size", "--workers", "--seed")  # scripts may give these to every command
ENDING = (FILES, RUNNING, LAST)  # the headings that come last


def option(
    spec: str, help: str, *, group: str = "", needs: Sequence[str] = (), repeats: bool = False, **settings: Any
) -> Any:
    """An option of typer from its names and the placeholder of its value, as in `-m, --model MODEL`.

    `group` is its heading in the help; it is refused unless one of the parameters `needs` is given, too. With `repeats`
    its `parser` gets the list of all values of the command line, and one text from elsewhere.
    """
    *others, last = spec.split(", ")
    name, _, metavar = last.partition(" ")
    made: Any = typer.Option(*others, name, metavar=metavar or None, help=help, **settings)
    made.group, made.needs, made.repeats = group, needs, repeats
    return made


class Command(ConfiguredCommand):
    """A command that refuses options which do nothing: those of other topics, and those without what they `need`.

    Only the options EVERYWHERE are taken by each command, though not offered by those that have no use for them.
    """

    needs: ClassVar[Mapping[str, Sequence[str]]] = {}
    repeats: ClassVar[Mapping[str, bool]] = {}

    def make_parser(self, ctx: Any) -> Any:
        parser = super().make_parser(ctx)
        taken = {name for param in self.params for name in param.opts}
        for name in EVERYWHERE:
            if name not in taken:
                parser.add_option(obj=self, opts=[name], dest=name)
        for param in self.params:
            if self.repeats.get(param.name):
                parser.add_option(obj=param, opts=param.opts, dest=param.name, action="append")
        return parser

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        self.topic = next((word for word in args if word in self.topic_names), "")
        rest = super().parse_args(ctx, args)
        for param in self.params:
            if param.param_type_name == "option" and is_given(ctx, param.name):
                self._check(ctx, param)
        return rest

    def _check(self, ctx: Any, param: Any) -> None:
        topics = self.topics if _flag(param) not in EVERYWHERE else None
        if topics and topics.refuses and not topics.uses(self.topic, param.name):
            others = ", ".join(topics.only[param.name])
            raise VlmkitError(f"{_flag(param)} is not for {self.topic}", f"leave it out, it is for {others}")
        needs = self.needs.get(param.name, ())
        if needs and all(not ctx.params[name] and ctx.params[name] != "" for name in needs):
            flags = {param.name: _flag(param) for param in self.params}
            wanted = " or ".join(flags[name] for name in needs)
            raise VlmkitError(
                f"{_flag(param)} requires {wanted}",
                f"add {'it' if len(needs) == 1 else 'one'}, or leave out {_flag(param)}",
            )


def _flag(param: Any) -> str:
    return max(param.opts, key=len)


class _Made(NamedTuple):
    """A parameter of the function that typer sees, and the heading of its option."""

    parameter: inspect.Parameter
    group: str


def enter(app: typer.Typer, function: Callable[..., Exit | None]) -> None:
    """Enter `function` in the command table of `app`.

    A parameter whose type is a dataclass stands for that one's options, whose heading is its `title`; what a dataclass
    inherits comes last. An attribute `topics` of the function holds Topics.
    """
    own = list(inspect.signature(function).parameters.values())
    kinds: dict[str, Any] = {p.name: p.annotation for p in own if is_dataclass(p.annotation)}
    made = [each for parameter in own for each in _parameters_of(parameter)]
    made.sort(key=lambda each: ENDING.index(each.group) + 1 if each.group in ENDING else 0)

    @functools.wraps(function)
    def with_groups(**given: Any) -> Exit | None:
        options = {name: kind(**{f.name: given.pop(f.name) for f in fields(kind)}) for name, kind in kinds.items()}
        return function(**options, **given)

    with_groups.__signature__ = inspect.Signature([each.parameter for each in made])  # type: ignore[attr-defined]
    with_groups.__annotations__ = {each.parameter.name: each.parameter.annotation for each in made}
    facts = {
        "groups": {each.parameter.name: each.group for each in made},
        "needs": {each.parameter.name: _info(each.parameter, "needs") for each in made},
        "repeats": {each.parameter.name: bool(_info(each.parameter, "repeats")) for each in made},
        "topics": getattr(function, "topics", None),
    }
    app.command(cls=type("Command", (Command,), facts))(with_groups)


def _parameters_of(parameter: inspect.Parameter) -> Iterator[_Made]:
    kind: Any = parameter.annotation
    keyword = inspect.Parameter.KEYWORD_ONLY
    if not is_dataclass(parameter.annotation):
        yield _Made(parameter.replace(kind=keyword), _info(parameter, "group") or OPTIONS)
        return
    titles = {name: base.title for base in reversed(kind.__mro__[:-1]) for name in base.__annotations__}
    for each in fields(kind):
        made = inspect.Parameter(each.name, keyword, default=each.default, annotation=each.type)
        yield _Made(made, _info(made, "group") or titles[each.name])


def _info(parameter: inspect.Parameter, name: str) -> Any:
    """What `option` noted on the parameter."""
    return next(
        (getattr(each, name) for each in getattr(parameter.annotation, "__metadata__", ()) if hasattr(each, name)), ()
    )
