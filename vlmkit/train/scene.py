"""What the captions of one picture say together."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from vlmkit.train.mentions import ANIMALS, NUMBERS, PEOPLE, Mention, actions, mentions

MORE = set("another other others both each together second third pair ones one".split())
MANY = set("crowd others spectators onlookers bystanders audience background several many various pack third".split())
FIGURES = set("statue statues stuffed painting mascot costume costumes hot poster cartoon drawing sculpture".split())


@dataclass(frozen=True)
class Scene:
    """What the captions of one picture say together."""

    captions: list[list[str]]

    @cached_property
    def mentions(self) -> list[list[Mention]]:
        return [list(mentions(caption)) for caption in self.captions]

    @cached_property
    def words(self) -> set[str]:
        return {word for caption in self.captions for word in caption}

    @cached_property
    def actions(self) -> Counter[str]:
        """How many captions tell of each action."""
        return Counter(action for caption in self.captions for action in actions(caption))

    def named(self, names: Iterable[str]) -> list[list[Mention]]:
        """The mentions of these classes, caption by caption, of the captions that have any."""
        wanted = set(names)
        found = ([m for m in caption if m.name in wanted] for caption in self.mentions)
        return [some for some in found if some]

    def count(self, names: Iterable[str]) -> tuple[int, int] | None:
        """(how many there are, captions that say so); None where they do not agree or may leave some out."""
        found = [_total(some) for some in self.named(names)]
        told = [total for total in found if total is not None]
        if not told or len(set(told)) > 1 or (told[0] == 1 and len(told) < len(found)):
            return None
        return told[0], len(told)

    def one(self, names: Iterable[str], captions: int) -> bool:
        """Whether there is exactly one of these classes, by as many captions or more."""
        total, told = self.count(names) or (0, 0)
        return total == 1 and told >= captions and not self.words & MORE

    def several(self, names: Iterable[str]) -> int | None:
        """How many there are, two or more, by two captions or more, where no other number stands anywhere."""
        total, told = self.count(names) or (0, 0)
        if total < 2 or told < 2 or self.words & MANY:
            return None
        wanted = set(names)
        others = {m.count for caption in self.mentions for m in caption if m.name not in wanted}
        stray = {NUMBERS[word] for word in self.words & NUMBERS.keys()} - others - {total}
        return None if stray else total

    @cached_property
    def person(self) -> str | None:
        """What to call the one person in the picture; None where there are more, or none."""
        if not self.one(PEOPLE, 4):
            return None
        names = Counter(m.name for some in self.named(PEOPLE) for m in some)
        sexes = [{"man", "boy"}, {"woman", "girl"}]
        if all(names.keys() & sex for sex in sexes):
            return None
        name, count = names.most_common(1)[0]
        return name if count >= 3 else "person"

    @cached_property
    def animal(self) -> str | None:
        """The class of the only animals in the picture."""
        names = {m.name for some in self.named(ANIMALS) for m in some}
        if len(names) != 1 or self.words & FIGURES:
            return None
        return names.pop()

    def color(self, name: str, captions: int) -> str | None:
        """The colour of the one `name`, by as many captions or more, where no caption says another."""
        found = [m for some in self.named([name]) for m in some]
        told = [m.colors for m in found if m.colors]
        if len(told) < captions or len(set(told)) > 1 or not all(m.plain and m.count == 1 for m in found):
            return None
        return " and ".join(sorted(told[0]))


def _total(some: list[Mention]) -> int | None:
    """How many the mentions of one caption are together; None where it is not said."""
    total = 0
    for i, mention in enumerate(some):
        if mention.count is None:
            return None
        if not (mention.known and mention.count == 1 and i):  # `a dog … the dog` is one
            total += mention.count
    return total
