"""A run's configuration: defaults, then a preset, then a TOML file, then flags; each wins over those before it."""

import math
import tomllib
import types
import typing
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from vlmkit.errors import VlmkitError

T = TypeVar("T")
FLAGS = {"out": "output", "start": "from", "patience": "early-stop", "smoothing": "label-smoothing"}


def flag_of(field: str) -> str:
    """The name of a field on the command line and in TOML."""
    return FLAGS.get(field, field).replace("_", "-")


def resolve(kind: type[T], preset: dict[str, Any], told: dict[str, Any], flags: dict[str, Any]) -> T:
    """A `kind`, a frozen dataclass, from settings by field name: `told` is what `read` found, None a flag not given.

    Raises VlmkitError for a flag that this stage does not have, and for what is missing.
    """
    hints = typing.get_type_hints(kind)
    given = {name: value for name, value in flags.items() if value is not None}
    if odd := sorted(given.keys() - hints.keys()):
        raise VlmkitError(f"--{flag_of(odd[0])} is not for this stage", "leave it out, see vlmkit train --help")
    settings = preset | told | given
    missing = [f.name for f in fields(kind) if f.name not in settings and _required(f)]  # type: ignore[arg-type]
    if missing:
        name = "DATA" if missing[0] == "data" else f"--{flag_of(missing[0])}"
        raise VlmkitError(f"{name} is missing", "give it on the command line or in --config, see vlmkit train --help")
    _check(settings)
    return kind(**settings)


def _check(settings: dict[str, Any]) -> None:
    """Raises VlmkitError where a run would only seem to do what was asked for."""
    for name, value in settings.items():
        if name.endswith("lr") and not 0 <= value < math.inf:
            raise VlmkitError(f"--{flag_of(name)} {value:g} is no rate", "give one of 0 or more, such as 1e-4")
    if settings.get("epochs", 1) <= 0:
        raise VlmkitError(f"--epochs {settings['epochs']:g} trains nothing", "give a number above 0")
    if settings.get("patience") and settings.get("val") is None:
        raise VlmkitError("--early-stop counts validations, and there are none", "give --val")


def _required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def read(kind: type[Any], file: Path, **beside: type) -> dict[str, Any]:
    """The settings in a TOML file, by field name of `kind`, or of those `beside` it.

    Raises VlmkitError for a name or a value that does not fit.
    """
    try:
        told = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise VlmkitError(f"{file}: {error}", "mend the file") from None
    hints = typing.get_type_hints(kind) | beside
    names = {flag_of(name): name for name in hints} | {flag_of(name).replace("-", "_"): name for name in hints}
    found = {}
    for key, value in told.items():
        if key not in names:
            raise VlmkitError(f"{file}: no setting is called {key}", "use the names of the flags without --")
        found[names[key]] = _fitting(value, hints[names[key]], f"{file}: {key}")
    return found


def _fitting(value: Any, hint: Any, where: str) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds:
        return float(value)
    for kind in kinds:
        if kind is Path and isinstance(value, str):
            return Path(value)
        if typing.get_origin(kind) is list and isinstance(value, list):
            return [_fitting(each, typing.get_args(kind)[0], where) for each in value]
        if isinstance(kind, type) and type(value) is kind:
            return value
    raise VlmkitError(f"{where} = {value!r} does not fit", f"give {' or '.join(map(_name, kinds))}")


def _name(kind: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    return names.get(kind, "a list")


def as_toml(config: Any) -> str:
    """All settings of `config`, as `--config` reads them."""
    import tomli_w

    values = {flag_of(field.name): getattr(config, field.name) for field in fields(config)}
    return tomli_w.dumps({name: _plain(value) for name, value in values.items() if value is not None})


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
