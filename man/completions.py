"""Completions for bash, zsh and fish, from the command table: options of each command, stage and task, and values."""

import enum
import re
from typing import Any, NamedTuple

from vlmkit.cli.app import COMMANDS
from vlmkit.datasets import DATASETS
from vlmkit.index.types import TYPES
from vlmkit.models.registry import CONNECTORS
from vlmkit.models.resolve import ALIASES
from vlmkit.train.presets import PRESETS

DATA = "${XDG_DATA_HOME:-$HOME/.local/share}/vlmkit"
CONFIG = "${VLMKIT_CONFIG:-${XDG_CONFIG_HOME:-$HOME/.config}/vlmkit/config.toml}"
TOWERS = ["mini", "patches", "tiny"]
FETCHED = [*DATASETS.builtin, *ALIASES]
WORDS = {  # by command and parameter, where the command line does not know them
    ("train", "preset"): [*PRESETS["vlm"]],
    ("train", "connector"): [*CONNECTORS.builtin],
    ("train", "start"): ["mini", "tiny"],
    ("train", "vision"): TOWERS,
    ("train", "llm"): ["tiny"],
    ("index", "type"): ["auto", *TYPES.builtin],
    ("config", "key"): [*COMMANDS],
    ("download", "names"): FETCHED,
    ("download", "card"): FETCHED,
}
KINDS = {"FILE": "file", "DIR": "folder", "INDEX": "index", "MODEL": "model", "FIELD": "field", "DATA": "file"}
KINDS |= {"FIELD=VALUE": "where", "INPUT": "file", "IMAGE_OR_QUESTION": "file", "FILE|JSON": "file"}


class Value(NamedTuple):
    """What stands for an option or argument: words, and files, folders, an index, a model, a field, or nothing else."""

    kind: str
    words: list[str]
    metavar: str


def value_of(command: Any, param: Any, topic: str = "") -> Value:
    """What may stand for the parameter; in a topic, its own words too."""
    annotation = param.type_descriptor.annotation
    metavar = param.metavar or "VALUE"
    words = list(map(str, annotation)) if isinstance(annotation, enum.EnumType) else []
    words = words or (metavar.strip("[]").split("|") if "|" in metavar and metavar.islower() else [])
    words += WORDS.get((command.name, param.name), [])
    if command.topics and topic:
        words += command.topics.describe(topic).values.get(param.name, [])
    kind = KINDS.get(metavar.rpartition("]")[2] or metavar, "file" if param.name in ("names", "preset") else "none")
    if kind == "model":
        own = "-m" in param.opts
        users = (
            {"embed", "ask"}
            if command.name == "serve"
            else {command.name}
            if own
            else {f"{command.name} {name}" for name in param.opts}
        )
        words += ["mini"] if own else []
        words += [name for name, alias in ALIASES.items() if users & set(alias.used_by)]
    return Value(kind, words, metavar)


def options_of(command: Any, topic: str = "") -> list[Any]:
    """The options that the topic uses, or all topics do."""
    topics = command.topics
    return [
        param
        for param in command.params
        if param.param_type_name == "option" and not param.hidden and (not topics or topics.uses(topic, param.name))
    ]


def names_of(param: Any) -> list[str]:
    return [*sorted(param.opts, key=len), *param.secondary_opts]


def topics_of(command: Any) -> list[str]:
    """The topics of a command, the first empty: before one is named."""
    return ["", *command.topic_names]


def summary_of(help: str) -> str:
    """The first sentence, short enough for a list."""
    return re.split(r"[.;:] |\.$", " ".join(help.split("\n\n")[0].split()))[0]
