"""What a caption mentions: living beings, clothes and things, how many, in which colours, where, and doing what.

These rules would rather miss a mention than misread one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vlmkit.recipes.mini.caption_questions.wordlists import ACTIONS, COLORS, LISTS, NUMBERS, PLACES, nouns, reverse

TOKENS = re.compile(r"[a-z0-9]+|'s|[,.]")
NAMES = reverse(COLORS)
HUES = NAMES.keys() | LISTS["hues"]
BETWEEN = HUES | LISTS["patterns"] | LISTS["plain"]  # what may stand between `a` and its noun
DOING = reverse(ACTIONS)
SITES = reverse(PLACES)


@dataclass(frozen=True, slots=True)
class Mention:
    """A thing of class `name`: how many (None: several, or unclear), its colours, whether that is all of its look."""

    name: str
    number: int | None
    colors: frozenset[str]
    plain: bool  # no pattern, and no colour without a common name
    known: bool  # `the dog`: perhaps mentioned before
    at: int  # which token


def tokens(caption: str) -> list[str]:
    """The words of a caption in lower case, commas and full stops among them."""
    return TOKENS.findall(re.sub(r"\bt[- ]shirt", "tshirt", caption.lower()))


def mentions(caption: list[str]) -> Iterator[Mention]:
    """What the tokens of a caption mention, in order."""
    for at, word in enumerate(caption):
        if word not in nouns():
            continue
        after = caption[at + 1] if at + 1 < len(caption) else "."
        before = caption[at - 1] if at else ""
        verb = word in LISTS["verbish"] and before in nouns()  # `girls slide`
        modifier = after in nouns() and after not in LISTS["verbish"]  # `dog toy`
        if verb or modifier or before in LISTS["food"]:  # `hot dog`
            continue
        name, several = nouns()[word]
        if word == "bike" and before == "dirt":
            name = "motorcycle"
        mention = _phrase(caption, at, name, several)
        if mention is not None:
            yield replace(mention, number=None) if after == "'s" else mention


def _phrase(caption: list[str], at: int, name: str, several: bool) -> Mention | None:
    """The noun at `at` with what stands before it; None where it is said not to be there."""
    start = at
    while start and (caption[start - 1] in BETWEEN or _joins(caption, start - 1)):
        start -= 1
    words = set(caption[start:at])
    before = caption[start - 1] if start else ""
    if LISTS["no"] & {before, caption[max(0, start - 2)] if before in LISTS["one"] else ""}:
        return None
    number = NUMBERS.get(before) if several else 1
    if before in LISTS["one"] and start > 2 and caption[start - 2] == "and" and caption[start - 3] in HUES:
        number = None  # `a black and a white dog` are two
    colors = frozenset(NAMES[word] for word in words & NAMES.keys())
    plain = words.isdisjoint(LISTS["patterns"] | LISTS["hues"])
    return Mention(name, number, colors, plain, before == "the", at)


def _joins(caption: list[str], at: int) -> bool:
    """Whether the token joins two adjectives, as in `black and white`."""
    return caption[at] in ("and", ",") and at > 0 and caption[at - 1] in BETWEEN


def actions(caption: list[str]) -> set[str]:
    """What is done in a caption, as `running`."""
    found = set()
    for at, word in enumerate(caption):
        before = caption[at - 1] if at else ""
        after = caption[at + 1] if at + 1 < len(caption) else "."
        noun = word.endswith("s") and before in LISTS["not_verb_after"]
        if word in DOING and not noun and after not in LISTS["not_verb_before"]:
            found.add(DOING[word])
    return found


def places(caption: list[str]) -> set[str]:
    """The places that a caption says something is in, on or at."""
    found = set()
    for at, word in enumerate(caption):
        before = caption[max(0, at - 4) : at]
        if word in SITES and not LISTS["within"].isdisjoint(before) and LISTS["beside"].isdisjoint(before):
            found.add(SITES[word])
    return found
