"""The stages of `vlmkit train`, and what a setting of them is: a field of a dataclass with help, unit and bounds."""

import operator
from dataclasses import field
from enum import StrEnum
from typing import Any


class Stage(StrEnum):
    CONTRASTIVE = "contrastive"
    ALIGN = "align"
    INSTRUCT = "instruct"
    PREFER = "prefer"
    HEAD = "head"


TRAINED = (Stage.CONTRASTIVE, Stage.ALIGN, Stage.INSTRUCT, Stage.PREFER)  # step by step: what settings are for
ALL = tuple(Stage)
LIMITS = {"least": (operator.ge, "at least"), "above": (operator.gt, "more than")}
LIMITS |= {"most": (operator.le, "at most"), "below": (operator.lt, "less than")}


def setting(
    default: Any,
    help: str = "",
    unit: str = "N",
    *,
    choices: tuple[str, ...] = (),
    stages: tuple[Stage, ...] = TRAINED,
    **limits: float,
) -> Any:
    """A field with the help of its option, for `stages` alone; without `help` the command declares the option itself.

    `limits` are by the names of LIMITS. A subclass changes the default by `name: type = value`.
    """
    metadata = {"help": help, "unit": unit, "choices": choices, "stages": stages, "limits": limits}
    return field(default=default, metadata=metadata)


PLAIN = setting(None, stages=ALL).metadata
