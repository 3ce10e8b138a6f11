"""The command config: where the values of options come from."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmkit.cli.defaults import ALL, IN_FILE, MODELS, config_file, configurable, read_config, settings_of
from vlmkit.cli.options import Common, Json, option
from vlmkit.cli.screen import for_person, print_table
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.terminal import Output, warn

if TYPE_CHECKING:
    from vlmkit.io.records import Record

SECRET = re.compile(r"(://)[^/@\s]+(?=@)|((?:key|token|secret|password)=).*", re.IGNORECASE)
Key = Annotated[
    str | None,
    typer.Argument(
        metavar="KEY", help="What to show: a command, or one value as COMMAND.OPTION, alone.", show_default=False
    ),
]
All = Annotated[bool, option("--all", "Show the defaults of vlmkit, too.")]
ShowPath = Annotated[bool, option("--path", "Print the path of config.toml, whether it is there or not.")]


def config(run: Common, key: Key = None, all: All = False, path: ShowPath = False, json: Json = False) -> Exit:
    """Show which options are set by config.toml or the environment.

    Options that config.toml sets are defaults: `[search]` and below it `k = 5` for search, `[all]` for what many
    commands have; the environment and the command line win. vlmkit-config(5) says what the file may hold. Prints a
    table on a terminal, records on a pipe, the value alone of a KEY such as search.k. What is wrong in the file is
    told, line by line, with exit code 2. Secrets are not printed.
    """
    if path:
        with Output() as out:
            out.write(f"{config_file()}\n".encode())
        return Exit.OK
    problems: dict[str, None] = {}
    rows = list(_rows(problems))
    for problem in problems:
        warn(problem)
    shown = rows if key is None else _found(rows, key)
    single = key is not None and "." in key and len(shown) == 1 and not json
    if not all and not single:
        shown = [row for row in shown if row["source"] != "default"]
    if not all and key is None:
        shown = [row for row in shown if row["command"] == ALL or row.get("table") != ALL]
    with Output() as out:
        if single:
            out.write("".join(f"{line}\n" for line in _lines(shown[0]["value"])).encode())
        elif for_person(None, json):
            _print_table(out, shown)
        else:
            out.write_records(shown)
    unset = single and shown[0]["value"] is None
    return Exit.FATAL if problems else Exit.NOTHING_FOUND if unset else Exit.OK


def _rows(problems: dict[str, None]) -> "Iterator[Record]":
    """Every option of every command and where its value stands, then [all] and the models; what is wrong goes to
    `problems`.
    """
    from vlmkit.cli.app import command_line

    for name, command in command_line().commands.items():
        ctx = command.make_context(name, [], resilient_parsing=True)
        settings = settings_of(ctx)
        problems.update(dict.fromkeys(map(str, settings.problems)))
        ctx.default_map |= settings.set_aside
        options = {param.name: param for param in configurable(command)}
        for param in options.values():
            value, source = param.consume_value(ctx, {})
            yield _row(name, param, value) | _source(source.name, param.envvar, settings.tables.get(param.name, ""))
        for topic, values in settings.topics.items():
            for field, value in values.items():
                yield _row(f"{name}.{topic}", options[field], value) | _source(IN_FILE, None, f"{name}.{topic}")
    for table, entries in ({} if problems else read_config()).items():
        for key, value in entries.items() if table in (ALL, MODELS) else ():
            yield {"command": table, "option": key, "value": _printable(value)} | _source(IN_FILE, None, table)


def _row(command: str, param: Any, value: Any) -> "Record":
    name = max(param.opts, key=len).lstrip("-")
    shown = "***" if param.hide_input and value is not None else _printable(value)
    return {"command": command, "option": name, "value": shown}


def _source(source: str, variable: str | None, table: str) -> "Record":
    if source == IN_FILE:
        return {"source": "file", "from": str(config_file()), "table": table}
    return {"source": "environment", "from": variable} if source == "ENVIRONMENT" else {"source": "default"}


def _printable(value: Any) -> Any:
    """A value as a record holds it, without secrets."""
    if isinstance(value, dict):
        return {key: _printable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_printable, value))
    return SECRET.sub(r"\1\2***", str(value)) if isinstance(value, str | Enum | Path) else value


def _found(rows: "list[Record]", key: str) -> "list[Record]":
    """The rows of a command, or that of an option. Raises VlmkitError where there are none."""
    command, _, name = key.rpartition(".") if "." in key else (key, "", "")
    wanted = name.replace("_", "-")
    found = [row for row in rows if row["command"] == command and wanted in ("", row["option"])]
    if not found:
        known = [f"{row['command']}.{row['option']}" if "." in key else row["command"] for row in rows]
        near = get_close_matches(key, known, 1)
        other = f"did you mean {near[0]}?" if near else "give a command, or COMMAND.OPTION such as search.k"
        raise VlmkitError(f"there is no option {key}", other)
    return found


def _lines(value: Any) -> list[str]:
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, dict):
        return [f"{key} = {each}" for key, each in value.items()]
    return [] if value is None else list(map(str, value)) if isinstance(value, list) else [str(value)]


def _print_table(out: Output, rows: "list[Record]") -> None:
    cells = [[f"{row['command']}.{row['option']}", ", ".join(_lines(row["value"])), _from(row)] for row in rows]
    if cells:
        print_table(["option", "value", "from"], cells, overflow="fold", out=out)
    file = config_file()
    state = "" if file.exists() else " is not there; vlmkit-config(5) says what it may hold"
    out.write(f"{'' if cells else 'Nothing is set. '}{file}{state}\n".encode())


def _from(row: "Record") -> str:
    return f"[{row['table']}]" if row["source"] == "file" else f"${row['from']}" if "from" in row else "default"
