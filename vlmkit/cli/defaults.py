"""config.toml: defaults of options, by command, and models by names of the user's own.

The command line wins over the environment, the environment over this file. Its tables are those of commands, `[all]`
for options that many commands have, and `[models]`. A command whose first argument is a choice, such as the stage of
train, may have a table for each choice, too: `[train.align]`.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from vlmkit.cli.coercion import coerce_lightly
from vlmkit.cli.help import HelpfulCommand
from vlmkit.errors import VlmkitError
from vlmkit.io.files import read_text, user_folder

VARIABLE = "VLMKIT_CONFIG"
ALL, MODELS = "all", "models"
FIXED = ("debug", "version")  # parameters that are read before the file is, or that end the command
TELLS_ALL = "config"  # the command that names each mistake itself
OF_DEVICES, OF_ENDPOINTS = ("device",), ("base_url", "api_key_env", "option", "rpm")
IN_FILE = "DEFAULT_MAP"  # as a source of a parameter is called
_META = "vlmkit.settings"
Table = dict[str, Any]


def config_file() -> Path:
    """The file of $VLMKIT_CONFIG, else `$XDG_CONFIG_HOME/vlmkit/config.toml`, which need not be there."""
    return Path(os.environ.get(VARIABLE) or user_folder("config") / "config.toml")


def read_config() -> dict[str, Table]:
    """The tables of the file, none where there is no file. Raises VlmkitError where it cannot be read."""
    file = config_file()
    if not (os.environ.get(VARIABLE) or os.path.lexists(file)):
        return {}
    text = read_text(file, f"correct it, or name another file in ${VARIABLE}")
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise VlmkitError(f"{file}: {error}", "correct it, see vlmkit-config(5)") from None


@dataclass(slots=True)
class Settings:
    """What the file sets for one command.

    `tables` say where the value of a parameter stands; `topics` and `models` are what the first argument and -m may
    bring, a model with the name that the user's own one stands for.
    """

    tables: dict[str, str] = field(default_factory=dict)
    topics: dict[str, Table] = field(default_factory=dict)
    models: dict[str, tuple[str, Table]] = field(default_factory=dict)
    set_aside: Table = field(default_factory=dict)  # what the model of -m cannot have
    problems: list[VlmkitError] = field(default_factory=list)

    @classmethod
    def of(cls, ctx: typer.Context) -> "Settings":
        """What the file sets for the command of `ctx`; what is wrong with it is among the problems."""
        found = cls()
        try:
            config = read_config()
        except VlmkitError as error:
            found.problems.append(error)
            return found
        reader = _Reader(ctx, found.problems)
        reader.check_tables(config)
        command: Any = ctx.command
        own = {key: value for key, value in _table(config, command.name).items() if not isinstance(value, dict)}
        for table, entries in ((ALL, _table(config, ALL)), (command.name, own)):
            found.apply(ctx, table, reader.values(table, entries))
        for topic, entries in _table(config, command.name).items():
            if isinstance(entries, dict) and reader.is_topic(topic):
                found.topics[topic] = reader.values(f"{command.name}.{topic}", entries)
        found.apply(ctx, f"{command.name}.{command.topic}", found.topics.get(command.topic, {}))
        for model, entry in _table(config, MODELS).items():
            found.models[model] = reader.model(model, entry)
        return found

    def apply(self, ctx: Any, table: str, values: Table) -> None:
        """Make the values that stand in `table` the defaults of the parameters, if they are used."""
        used = {name: value for name, value in values.items() if ctx.command.takes(name, ctx.command.topic)}
        ctx.default_map = {**(ctx.default_map or {}), **used}
        self.tables |= dict.fromkeys(used, table)


def _table(config: dict[str, Table], name: str) -> Table:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


class _Reader:
    """Finds the parameters that keys of the file mean; what is wrong goes to `problems`."""

    def __init__(self, ctx: Any, problems: list[VlmkitError]) -> None:
        self._ctx, self._problems = ctx, problems
        self._options = {name.lstrip("-"): param for param in configurable(ctx.command) for name in param.opts}

    def check_tables(self, config: dict[str, Table]) -> None:
        from vlmkit.cli.app import COMMANDS

        for name, table in config.items():
            if name not in (known := [*COMMANDS, ALL, MODELS]):
                what = f"no command is named {name}" if isinstance(table, dict) else f"{name} stands in no table"
                near = get_close_matches(name, known, 1)
                other = f"did you mean [{near[0]}]?" if near else f"put it under [COMMAND] or [{ALL}]"
                self._problem(what, other)
            elif not isinstance(table, dict):
                self._problem(f"{name} is not a table", f"write [{name}], and below it a line for each option")

    def is_topic(self, name: str) -> bool:
        topics = self._ctx.command.topic_names
        if name not in topics:
            self._unknown(self._ctx.command.name, name, topics or list(self._options))
        return name in topics

    def values(self, table: str, entries: Table) -> Table:
        """The values of the parameters that the entries of the table name, those that are wrong left out."""
        found: Table = {}
        topic, takes = table.partition(".")[2], self._ctx.command.takes
        known = _shared(table) or {name for name, param in self._options.items() if takes(param.name, topic)}
        for key, value in entries.items():
            name = key if key in known else key.replace("_", "-")
            param = self._options.get(name)
            if name not in known:
                self._unknown(table, key, sorted(known))
            elif param is None:
                continue  # other commands have it
            elif param.name in found:
                self._problem(f"[{table}] {key} is set already, by its other name", "leave one of them out")
            elif self._is_valid(table, key, param, value):
                found[param.name] = value
        return found

    def _is_valid(self, table: str, key: str, param: Any, value: Any) -> bool:
        wanted = "true or false" if param.is_flag else "a list" if param.multiple else "a text or a number"
        kind = bool if param.is_flag else list if param.multiple else (str, int, float)
        where = f"[{table}] {key} = {value!r}"
        if not isinstance(value, kind) or (isinstance(value, bool) and not param.is_flag):
            self._problem(f"{where} has the wrong type", f"give {wanted}")
            return False
        try:
            param.process_value(self._ctx, value)
        except typer.BadParameter as error:
            reason = " ".join(error.message.replace("Value error, ", "").split()).rstrip(".")
            self._problem(f"{where} is not valid ({reason})", "correct it")
            return False
        except VlmkitError as error:
            self._problem(f"{where}: {error.what}", error.remedy)
            return False
        return True

    def model(self, name: str, entry: Any) -> tuple[str, Table]:
        """The model that the user calls `name`, and the options of this command that stand beside it."""
        table = f"{MODELS}.{name}"
        if isinstance(entry, str):
            return entry, {}
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
            self._problem(f"[{MODELS}] {name} names no model", f'write {name} = "ORG/NAME", or a table with model = …')
            return name, {}
        return entry["model"], self.values(table, {key: value for key, value in entry.items() if key != "model"})

    def _unknown(self, table: str, key: str, known: Sequence[str]) -> None:
        near = get_close_matches(key.replace("_", "-"), known, 1)
        listed = f"it takes {', '.join(name for name in known if len(name) > 1)}"
        other = listed if _shared(table) else f"see vlmkit {table.partition('.')[0]} --help"
        self._problem(f"[{table}] has no option {key}", f"did you mean {near[0]}?" if near else other)

    def _problem(self, what: str, remedy: str) -> None:
        self._problems.append(VlmkitError(f"{config_file()}: {what}", remedy))


def _shared(table: str) -> set[str]:
    """The names that a table for several commands may hold: of options that are the same everywhere."""
    from vlmkit.cli.generate import ChatOptions
    from vlmkit.cli.options import EmbedOptions, IndexName, Records, Run, Seed

    tables: dict[str, tuple[Any, ...]] = {ALL: (Run, Records), MODELS: (Run, EmbedOptions, ChatOptions)}
    groups = tables.get(name := table.partition(".")[0], ())
    kinds: list[Any] = [each.type for group in groups for each in fields(group) if each.name not in FIXED]
    infos = [kind.__metadata__[0] for kind in (*kinds, *([Seed, IndexName] if name == ALL else []))]
    names = [name for info in infos for name in (info.default, *info.param_decls)]  # typer takes the first as default
    return {name.partition("/")[0].lstrip("-") for name in names}


def configurable(command: Any) -> list[Any]:
    """The options of a command that the file may set."""
    return [param for param in command.params if param.param_type_name == "option" and param.name not in FIXED]


def is_given(ctx: typer.Context, parameter: str) -> bool:
    """Whether the command line gives the parameter."""
    source = ctx.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def is_default(ctx: typer.Context, parameter: str) -> bool:
    """Whether the parameter has its value from nowhere: no command line, variable or file."""
    source = ctx.get_parameter_source(parameter)
    return source is None or source.name == "DEFAULT"


def set_by_file(ctx: typer.Context) -> list[Any]:
    """The options of a command line that have their values from the file."""
    found = [(param, ctx.get_parameter_source(param.name)) for param in configurable(ctx.command)]
    return [param for param, source in found if source is not None and source.name == IN_FILE]


class ConfiguredCommand(HelpfulCommand):
    """A command whose options have their defaults from config.toml.

    What is wrong there is an error of the command, not of its help. A switch that the file turns on is turned off by
    --no- and its name.
    """

    def takes(self, parameter: str, topic: str) -> bool:
        """Whether `topic` uses the parameter; without a topic, whether any does."""
        return not (self.topics and topic) or self.topics.uses(topic, parameter)

    def make_parser(self, ctx: Any) -> Any:
        parser = super().make_parser(ctx)
        for param in configurable(self):
            if param.is_flag and not param.secondary_opts:
                off = [f"--no-{name[2:]}" for name in param.opts if name.startswith("--")]
                parser.add_option(obj=param, opts=off, dest=param.name, action="store_const", const=False)
        return parser

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        coerce_lightly(self.get_params(ctx))
        ctx.default_map, ctx.meta[_META] = {}, Settings()  # which callbacks see while the file is read
        ctx.meta[_META] = Settings.of(ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        if (problems := settings_of(ctx).problems) and self.name != TELLS_ALL:
            raise problems[0]
        try:
            return super().invoke(ctx)
        except VlmkitError as error:
            named = re.findall(r"(?<!\S)--?[\w-]+", str(error))
            for param in set_by_file(ctx):
                if flag := next((flag for flag in param.opts if flag in named), None):
                    where = f"[{settings_of(ctx).tables[param.name]}] of {config_file()}"
                    raise VlmkitError(f"{error.what} ({flag} stands in {where})", error.remedy) from error
            raise


def settings_of(ctx: typer.Context) -> Settings:
    """What the file sets for the command that is run."""
    return ctx.meta[_META]


def named_model(ctx: typer.Context, param: typer.CallbackParam, value: str | None) -> str | None:
    """The callback of options that name a model: the one that the file calls so.

    With -m the options that stand beside it there become defaults, and those cease to be that such a model cannot have.
    """
    from vlmkit.models.types import ENDPOINT

    settings = settings_of(ctx)
    model, options = settings.models.get(value or "", (value, {}))
    if param.name == "model":
        settings.apply(ctx, f"{MODELS}.{value}", options)
        foreign = OF_DEVICES if model and model.startswith(ENDPOINT) else OF_ENDPOINTS
        defaults = ctx.default_map or {}
        settings.set_aside = {name: defaults.pop(name) for name in foreign if name in defaults}
    return model


def named_models(ctx: typer.Context, value: list[str] | None) -> list[str] | None:
    """The callback of options that name several models, as MODEL or NAME=MODEL; a name of the user's own stays one."""
    models = settings_of(ctx).models
    parts = [text.rpartition("=") for text in value or ()]
    named = [f"{name or own}={models[own][0]}" if own in models else name + sign + own for name, sign, own in parts]
    return named or None
