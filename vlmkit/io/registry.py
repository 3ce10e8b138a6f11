"""Tables of names and the objects behind them, which other packages extend by entry points."""

import importlib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError, first_line

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class Registry(Mapping[str, str]):
    """A table of "module:attribute" by name; an object is imported when it is loaded, not before.

    Packages add names by entry points of the group `group`; a built-in name cannot be replaced. Entry points are looked
    up only for a name that is not built in, and to list all names.
    """

    def __init__(self, group: str, builtin: Mapping[str, str]) -> None:
        self.group = group
        self.builtin = dict(builtin)

    def __getitem__(self, name: str) -> str:
        return self.builtin[name] if name in self.builtin else self.plugins()[name].value

    def __iter__(self) -> Iterator[str]:
        return iter([*self.builtin, *self.plugins()])

    def __len__(self) -> int:
        return len(self.builtin) + len(self.plugins())

    def load(self, name: str) -> Any:
        """The object called `name`. Raises KeyError for an unknown name, VlmkitError where a plugin does not load."""
        module, _, attribute = self[name].partition(":")
        if name in self.builtin:
            return getattr(importlib.import_module(module), attribute)
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:  # a third party's module may raise anything
            what = f"the plugin {name} of {self.group} cannot be loaded ({first_line(error)})"
            raise VlmkitError(what, f"check the package that provides {self[name]}") from None

    def plugins(self) -> "dict[str, EntryPoint]":
        """The entry points of other packages, by name."""
        points = _entry_points().select(group=self.group)
        return {point.name: point for point in points if point.name not in self.builtin}


@cache
def _entry_points() -> Any:
    """Those of all packages: looking for them takes 50 ms."""
    from importlib.metadata import entry_points

    return entry_points()
