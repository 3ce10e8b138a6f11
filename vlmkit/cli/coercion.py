"""The values of options without pydantic, which typer imports for the first one: 50 ms of every command."""

from enum import Enum
from typing import Any, get_args, get_origin

from typer import BadParameter
from typer._coercion import RuntimeParam, build_runtime_param


class Coercion(RuntimeParam):
    """Texts, numbers in their bounds, choices, lists of texts, what has a parser; the rest, and errors, by typer."""

    def _coerce_value(self, value: Any, param: Any, ctx: Any) -> Any:
        kind: Any = self.annotation
        if isinstance(kind, type) and isinstance(value, kind) and self._is_within(value):
            return value
        if get_origin(kind) is list and get_args(kind) == (str,) and all(isinstance(one, str) for one in value):
            return list(value)
        if (parse := self.parameter_info.parser) is not None:
            try:
                return parse(value)
            except ValueError as error:
                raise BadParameter(str(error), ctx=ctx, param=param) from None
        elif isinstance(value, str) and isinstance(kind, type):
            if issubclass(kind, Enum) and value in [member.value for member in kind]:
                return kind(value)
            if kind is int and value.isascii() and value.isdigit() and self._is_within(int(value)):
                return int(value)
        return build_runtime_param(param.type_descriptor)._coerce_value(value, param, ctx)

    def _is_within(self, value: Any) -> bool:
        low, high = self.parameter_info.min, self.parameter_info.max
        return (low is None or low <= value) and (high is None or value <= high)


def coerce_lightly(params: list[Any]) -> None:
    """Let `params` take their values by Coercion."""
    for param in params:
        if getattr(param, "type_descriptor", None) and param.type_descriptor.file_annotation is None:
            param._runtime_param = Coercion(param.type_descriptor.parameter_info, param.type_descriptor.annotation)
