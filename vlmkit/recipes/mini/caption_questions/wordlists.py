"""The word lists of words.toml."""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

_TABLES: dict[str, Any] = tomllib.loads(files(__package__).joinpath("words.toml").read_text())


def _table(name: str) -> dict[str, frozenset[str]]:
    return {key: frozenset(words.split()) for key, words in _TABLES[name].items()}


ANIMALS, PEOPLE, CLOTHES, THINGS = map(_table, ("animals", "people", "clothes", "things"))
ACTIONS, COLORS, PLACES = map(_table, ("actions", "colors", "places"))
ALIKE, UNLIKE, LISTS = map(_table, ("alike", "unlike", "lists"))
SIGHTS: dict[str, dict[str, frozenset[str]]] = {
    asked: {part: frozenset(words.split()) for part, words in parts.items()}
    for asked, parts in _TABLES["there"].items()
}
NUMBERS = {
    word: n for n, word in enumerate(["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], 2)
}
NUMBERS |= {str(n): n for n in NUMBERS.values()}


def reverse(table: dict[str, frozenset[str]]) -> dict[str, str]:
    """The class that each word of a table means."""
    return {word: name for name, words in table.items() for word in words}


@cache
def nouns() -> dict[str, tuple[str, bool]]:
    """(class, plural) of each noun."""
    found: dict[str, tuple[str, bool]] = {}
    for table in (ANIMALS, PEOPLE, CLOTHES, THINGS):
        for word, name in reverse(table).items():
            found[word] = (name, word in LISTS["groups"])
            if plural(word):
                found[plural(word)] = (name, True)
    return found


def plural(word: str) -> str:
    """The plural of a noun of the lists; empty where it has none of its own."""
    if word in LISTS["pairs"]:
        return ""
    if word in _TABLES["plurals"]:
        return _TABLES["plurals"][word]
    if word.endswith(("ch", "sh", "s", "x")):
        return f"{word}es"
    return f"{word[:-1]}ies" if word.endswith("y") and word[-2] not in "aeiou" else f"{word}s"
