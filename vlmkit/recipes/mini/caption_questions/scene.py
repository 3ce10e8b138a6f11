"""What the captions of one picture say together."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from vlmkit.recipes.mini.caption_questions.mentions import Mention, actions, mentions, places
from vlmkit.recipes.mini.caption_questions.wordlists import ANIMALS, LISTS, NUMBERS, PEOPLE

SEXES = ({"man", "boy"}, {"woman", "girl"})


@dataclass(frozen=True)
class Scene:
    """The captions of a picture as tokens, and what follows from them."""

    captions: list[list[str]]

    @cached_property
    def mentions(self) -> list[list[Mention]]:
        """Those of each caption."""
        return [list(mentions(caption)) for caption in self.captions]

    @cached_property
    def words(self) -> set[str]:
        """All words of all captions."""
        return {word for caption in self.captions for word in caption}

    @cached_property
    def actions(self) -> Counter[str]:
        """How many captions tell of each action."""
        return Counter(action for caption in self.captions for action in actions(caption))

    @cached_property
    def places(self) -> Counter[str]:
        """How many captions tell of each place."""
        return Counter(place for caption in self.captions for place in places(caption))

    def named(self, names: Iterable[str]) -> list[list[Mention]]:
        """The mentions of these classes, caption by caption, of the captions that have any."""
        wanted = set(names)
        found = ([m for m in caption if m.name in wanted] for caption in self.mentions)
        return [some for some in found if some]

    def count(self, names: Iterable[str]) -> tuple[int, int]:
        """(how many there are, captions that say so); (0, 0) where they do not agree or may leave some out."""
        found = [_total(some) for some in self.named(names)]
        known = [total for total in found if total is not None]
        if not known or len(set(known)) > 1 or (known[0] == 1 and len(known) < len(found)):
            return 0, 0
        return known[0], len(known)

    def one(self, names: Iterable[str], captions: int) -> bool:
        """Whether there is exactly one of these classes, by as many captions or more."""
        total, known = self.count(names)
        return total == 1 and known >= captions and not self.words & LISTS["more"]

    def several(self, names: Iterable[str]) -> int | None:
        """How many there are, two or more, by two captions or more, where no other number stands anywhere."""
        total, known = self.count(names)
        if total < 2 or known < 2 or self.words & LISTS["many"]:
            return None
        wanted = set(names)
        others = {m.number for caption in self.mentions for m in caption if m.name not in wanted}
        stray = {NUMBERS[word] for word in self.words & NUMBERS.keys()} - others - {total}
        return None if stray else total

    @cached_property
    def person(self) -> str | None:
        """What to call the one person in the picture; None where there are more, or none."""
        if not self.one(PEOPLE, 3):
            return None
        names = Counter(m.name for some in self.named(PEOPLE) for m in some)
        if all(names.keys() & sex for sex in SEXES):
            return None
        name, count = names.most_common(1)[0]
        return name if count >= 3 else "person"

    @cached_property
    def animal(self) -> str | None:
        """The class of the only animals in the picture."""
        names = {m.name for some in self.named(ANIMALS) for m in some}
        return names.pop() if len(names) == 1 and not self.words & LISTS["figures"] else None

    def color(self, name: str, captions: int, several: bool = False) -> str | None:
        """The colour of the one `name`, by as many captions or more, where no caption says another.

        With `several`, the colour that all of them have.
        """
        found = [m for some in self.named([name]) for m in some]
        known = [m.colors for m in found if m.colors]
        numbered = all((m.number == 1) is not several for m in found)
        if len(known) < captions or len(set(known)) > 1 or not numbered or not all(m.plain for m in found):
            return None
        return " and ".join(sorted(known[0]))


def _total(some: list[Mention]) -> int | None:
    """How many the mentions of one caption are together; None where it is not said."""
    total = 0
    for i, mention in enumerate(some):
        if mention.number is None:
            return None
        if not (mention.known and mention.number == 1 and i):  # `a dog … the dog` is one
            total += mention.number
    return total


def leader(found: Counter[str], least: int, next_below: int | None = None) -> str | None:
    """What comes most often, `least` times or more, where the next comes less (and less than `next_below`)."""
    (first, most), (_, second) = [*found.most_common(2), ("", 0), ("", 0)][:2]
    return first if most >= least and second < min(most, next_below or most) else None
