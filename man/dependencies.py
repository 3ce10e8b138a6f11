"""The packages that vlmkit and its extras bring, with their licences, read from what is installed.

vlmkit-dependencies(7) lists them without versions, so that the list holds on other machines and after an update. What
differs by platform, such as NVIDIA's libraries, is left to a sentence of that page.
"""

import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NAME, CORE = "vlmkit", "core"
BLOCK = re.compile(r"(<!-- generated: licences -->\n\n)(.*?)(\n\n<!-- end -->)", re.DOTALL)
BY_PLATFORM = re.compile(r"(nvidia|cuda)-.*|triton|colorama|pywin32|tzdata")
CLASSIFIER = "License :: OSI Approved :: "
EXPRESSION = re.compile(r"(MIT|[\w.]+-[\w.-]+)( (AND|OR|WITH) (MIT|[\w.]+-[\w.-]+))*")  # of SPDX
# What older metadata say in words, by their beginning; "BSD" alone leaves open which.
IDENTIFIERS = {
    "apache": "Apache-2.0",
    "bsd 2-clause": "BSD-2-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "3-clause bsd": "BSD-3-Clause",
    "freebsd": "BSD-2-Clause",
    "bsd": "BSD",
    "gnu library or lesser": "LGPL",
    "lgpl": "LGPL",
    "isc": "ISC",
    "mit": "MIT",
    "mozilla public license 2.0": "MPL-2.0",
    "python software foundation": "PSF-2.0",
}
UNNAMED = "not in its metadata"


@dataclass(frozen=True, slots=True)
class Closure:
    """All that some requirements bring: distributions by name, what each of them needs, and what is not installed."""

    found: dict[str, Distribution]
    needs: dict[str, set[str]]
    missing: set[str]


def declared(root: Path) -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for, by `core` and the extras, as it stands there."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    groups = {CORE: project["dependencies"], **project["optional-dependencies"]}
    return {name: list(map(Requirement, rows)) for name, rows in groups.items()}


def requirements(root: Path) -> dict[str, list[Requirement]]:
    """As `declared`; an extra that names others holds what they hold."""
    groups = declared(root)

    def flat(rows: Iterable[Requirement]) -> Iterator[Requirement]:
        for row in rows:
            if row.name == NAME:
                yield from flat(part for extra in sorted(row.extras) for part in groups[extra])
            else:
                yield row

    return {name: list(flat(rows)) for name, rows in groups.items()}


def closure(needed: Iterable[Requirement]) -> Closure:
    """All that `needed` bring on this machine."""
    made = Closure({}, defaultdict(set), set())
    done: set[tuple[str, str]] = set()
    waiting = list(needed)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        try:
            made.found[name] = distribution(name)
        except PackageNotFoundError:
            made.missing.add(name)
            continue
        for extra in {"", *requirement.extras} - {extra for package, extra in done if package == name}:
            done.add((name, extra))
            for brought in map(Requirement, made.found[name].requires or []):
                if brought.marker is None or brought.marker.evaluate({"extra": extra}):
                    made.needs[name].add(canonicalize_name(brought.name))
                    waiting.append(brought)
    return made


def licence(package: Distribution) -> str:
    """The licence of a package by its metadata: an expression of SPDX, where they give one or can be read so."""
    data = package.metadata
    if expression := data.get("License-Expression"):
        return expression
    classes = [c.removeprefix(CLASSIFIER) for c in data.get_all("Classifier") or [] if c.startswith(CLASSIFIER)]
    for words in filter(None, (data.get("License"), *classes)):
        if EXPRESSION.fullmatch(words):
            return words
        for beginning, identifier in IDENTIFIERS.items():
            if words.lower().startswith(beginning):
                return identifier
    return UNNAMED


def licences(root: Path) -> dict[str, tuple[str, str]]:
    """(what brings it, licence) of each package that is installed here: the core, or the extras."""
    own = {name: [row for row in rows if row.name != NAME] for name, rows in declared(root).items()}
    groups = {name: closure(rows).found for name, rows in own.items()}
    every = {name: package for found in groups.values() for name, package in found.items()}
    return {
        name: (_brought_by(name, groups), licence(package))
        for name, package in sorted(every.items())
        if not BY_PLATFORM.fullmatch(name)
    }


def _brought_by(name: str, groups: dict[str, dict[str, Distribution]]) -> str:
    extras = [group for group, found in groups.items() if name in found]
    if CORE in extras:
        return CORE
    return ", ".join([extra for extra in extras if extra != "test"] or extras)


def table(rows: dict[str, tuple[str, str]]) -> str:
    """`rows` as a table of Markdown, those of one group and licence together."""
    packages: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, row in sorted(rows.items()):
        packages[row].append(name)
    ordered = sorted(packages, key=lambda row: (row[0] != CORE, row[0] == "test", row))
    lines = [f"| {brought} | {terms} | {', '.join(packages[brought, terms])} |" for brought, terms in ordered]
    return "\n".join(["| of | licence | packages |", "|---|---|---|", *lines])


def listed(text: str) -> dict[str, tuple[str, str]]:
    """(what brings it, licence) of each package in the table of the page `text`."""
    rows = [line.strip("| ").split(" | ") for line in _block(text).splitlines()[2:]]
    return {name: (brought, terms) for brought, terms, names in rows for name in names.split(", ")}


def _block(text: str) -> str:
    if (found := BLOCK.search(text)) is None:
        raise ValueError("the page has no block of licences")
    return found[2]


def differences(root: Path, text: str) -> Iterator[str]:
    """Where the page `text` is wrong about what is installed here, or about what pyproject.toml asks for.

    What others bring or no longer bring is no difference: that changes with their versions.
    """
    here, there = licences(root), listed(text)
    for group, rows in declared(root).items():
        for name in sorted({canonicalize_name(row.name) for row in rows} - {NAME}):
            if name not in there or (there[name][0] != CORE and group not in {*there[name][0].split(", "), "test"}):
                yield f"{name} is not listed as of {group}"
    for name in sorted(set(here) & set(there)):
        if not _agree(here[name][1], there[name][1]):
            yield f"{name} is under {here[name][1]}, not {there[name][1]}"


def _agree(one: str, other: str) -> bool:
    """Whether two releases of a package may be under these: what it bundles, and how it says so, changes with them."""
    first, second = (set(re.findall(r"[\w.-]+", terms)) - {"AND", "OR", "WITH"} for terms in (one, other))
    return UNNAMED in (one, other) or any(a.startswith(b) or b.startswith(a) for a in first for b in second)


def updated(root: Path, text: str) -> str:
    """The page `text` with what is installed here; where something is not installed, what it said stays as well."""
    missing = {name for needed in requirements(root).values() for name in closure(needed).missing}
    rows = (listed(text) if missing else {}) | licences(root)
    return BLOCK.sub(lambda found: found[1] + table(rows) + found[3], text)
