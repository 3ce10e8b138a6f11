"""Names and the objects that they stand for, which third parties extend by entry points."""

import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any

from vlmkit.errors import VlmkitError, first_line


class Registry(Mapping[str, str]):
    """A table of "module:attribute" by name; an object is imported when it is loaded, not before.

    Packages add names by entry points of the group `group`; a built-in name cannot be replaced. Entry points are looked
    up only for a name that is not built in, and to list all names.
    """

    def __init__(self, group: str, builtin: Mapping[str, str]) -> None:
        self.group = group
        self._builtin = dict(builtin)

    def __getitem__(self, name: str) -> str:
        return self._builtin[name] if name in self._builtin else self._plugins()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._plugins() | self._builtin)

    def __len__(self) -> int:
        return len(self._plugins() | self._builtin)

    def load(self, name: str) -> Any:
        """The object called `name`. Raises KeyError for an unknown name, VlmkitError where a plugin does not load."""
        module, _, attribute = self[name].partition(":")
        if name in self._builtin:
            return getattr(importlib.import_module(module), attribute)
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:  # a third party's module may raise anything
            what = f"the plugin {name} of {self.group} cannot be loaded ({first_line(error)})"
            raise VlmkitError(what, f"check the package that provides {self[name]}") from None

    def _plugins(self) -> dict[str, str]:
        return {point.name: point.value for point in importlib.metadata.entry_points(group=self.group)}
