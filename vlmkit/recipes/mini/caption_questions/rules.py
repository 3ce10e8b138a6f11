"""The rules: each looks at a scene and yields questions of one category with their answers."""

from collections import Counter
from collections.abc import Callable, Iterator

from vlmkit.recipes.mini.caption_questions.presence import shown
from vlmkit.recipes.mini.caption_questions.scene import Scene, leader
from vlmkit.recipes.mini.caption_questions.wordlists import (
    ALIKE,
    ANIMALS,
    CLOTHES,
    LISTS,
    PEOPLE,
    SIGHTS,
    THINGS,
    UNLIKE,
    plural,
)

Pick = Callable[..., str]  # (kind, wordings…): one of the wordings
ChatSample = Iterator[tuple[str, tuple[str, ...]]]  # (question, answers, the best one first)

# Clothes that one captioner calls so and another so: their colours must agree.
WORN = (
    {"shirt", "jacket", "coat", "sweater", "sweatshirt", "vest", "jersey", "uniform", "suit", "wetsuit"},
    {"hat", "cap", "helmet"},
    {"shorts", "pants", "jeans"},
    {"dress", "skirt"},
    {"swimsuit", "bikini"},
)


def _counted(scene: Scene, pick: Pick) -> ChatSample:
    people = 1 if scene.person else scene.several(PEOPLE)
    if people:
        yield pick("people", "how many people are there?", "how many people are in the picture?"), (str(people),)
    for name in [*ANIMALS, "man", "woman", "boy", "girl"]:
        many = plural(name)
        animal = name in ANIMALS
        total = 1 if animal and scene.one([name], 3) else scene.several([name])
        if total and not (scene.words & LISTS["figures"]) and (animal or total == people):
            yield pick(name, f"how many {many} are there?", f"how many {many} are in the picture?"), (str(total),)


def _colors(scene: Scene) -> Iterator[tuple[str, str]]:
    """(thing, colour) of what the picture has one of."""
    if scene.animal and scene.one([scene.animal], 3) and (color := scene.color(scene.animal, 2)):
        yield scene.animal, color
    elif scene.animal and scene.several([scene.animal]) and (color := scene.color(scene.animal, 2, several=True)):
        yield plural(scene.animal), color
    if scene.person:
        for some in WORN:
            found = [(name, scene.color(name, 1)) for name in sorted(some) if scene.named([name])]
            if len({color for _, color in found}) == 1 and found[0][1]:
                yield found[0][0], found[0][1]
    for name in THINGS:
        if scene.count([name]) >= (1, 2) and (color := scene.color(name, 1)):
            yield name, color


def _verb(name: str) -> str:
    return "are" if name in LISTS["pairs"] or name in map(plural, ANIMALS) else "is"


def _colored(scene: Scene, pick: Pick) -> ChatSample:
    for name, color in _colors(scene):
        verb = _verb(name)
        whose = f"{scene.person}'s {name}" if name in CLOTHES else name
        yield pick(name, f"what color {verb} the {name}?", f"what color {verb} the {whose}?"), (color,)


def _stated_color(scene: Scene, pick: Pick) -> ChatSample:
    for name, color in _colors(scene):
        verb = _verb(name)
        if color in ALIKE:
            yield f"{verb} the {name} {color}?", ("yes",)
            for other in ALIKE.keys() - ALIKE[color] - {color}:
                yield f"{verb} the {name} {other}?", ("no",)


def _animal(scene: Scene, pick: Pick) -> ChatSample:
    if scene.animal and len(scene.named([scene.animal])) >= 3:
        wordings = ("what animal is in the picture?", "what animal is this?", "what kind of animal is shown?")
        yield pick("animal", *wordings), (scene.animal,)


def _worn(scene: Scene, pick: Pick) -> ChatSample:
    found = Counter({name: len(scene.named([name])) for name in CLOTHES})
    sure = [(name, count) for name, count in found.most_common() if count >= 2]
    if scene.person and sure:
        yield f"what is the {scene.person} wearing?", tuple(name for name, count in sure for _ in range(count))[:10]


def _handled(scene: Scene, pick: Pick) -> ChatSample:
    """What is ridden, held, or carried in the mouth."""
    if scene.person:
        if ridden := _object(scene, LISTS["rides"], LISTS["ridden"]):
            yield f"what is the {scene.person} riding?", (ridden,)
        if held := _object(scene, LISTS["holds"], LISTS["held"]):
            yield f"what is the {scene.person} holding?", (held,)
    if scene.animal == "dog" and scene.one(["dog"], 3):
        carried = Counter(
            m.name
            for some, caption in zip(scene.mentions, scene.captions, strict=True)
            if "mouth" in caption
            for m in some
            if m.name in LISTS["mouth"]
        )
        if len(carried) == 1 and carried.total() >= 2:
            yield pick("mouth", "what is in the dog's mouth?", "what is the dog carrying?"), tuple(carried)


def _object(scene: Scene, verbs: frozenset[str], things: frozenset[str]) -> str | None:
    """The one of `things` that two captions or more name right after one of `verbs`, and no caption another."""
    found: Counter[str] = Counter()
    for some, caption in zip(scene.mentions, scene.captions, strict=True):
        starts = [at for at, word in enumerate(caption) if word in verbs]
        for mention in some:
            start = max((at for at in starts if at < mention.at), default=-9)
            between = any(start < other.at < mention.at for other in some)
            if mention.name in things and mention.at - start <= 5 and not between:
                found[mention.name] += 1
    return next(iter(found)) if len(found) == 1 and found.total() >= 2 else None


def _where(scene: Scene, pick: Pick) -> ChatSample:
    who = scene.person or scene.animal or ("people" if scene.named(PEOPLE) else None)
    place = leader(scene.places, 3, next_below=2)
    if who and place:
        one = scene.person or scene.one([who], 2)
        yield f"where {'is' if one else 'are'} the {who if one or who == 'people' else plural(who) or who}?", (place,)


def _played(scene: Scene, pick: Pick) -> ChatSample:
    """The sport that two captions or more name, and none another."""
    found = Counter(word for caption in scene.captions for word in LISTS["sports"] & set(caption))
    if len(found) == 1 and found.total() >= 2 and scene.words & LISTS["plays"]:
        yield pick("sport", "what sport is this?", "what sport is being played?"), tuple(found)


def _alone(scene: Scene) -> str | None:
    """The only living being of the picture."""
    if scene.person and not scene.named(ANIMALS):
        return scene.person
    if scene.animal and scene.one([scene.animal], 3) and not scene.named(PEOPLE):
        return scene.animal
    return None


def _done(scene: Scene, pick: Pick) -> ChatSample:
    who, doing = _alone(scene), leader(scene.actions, 3)
    if who and doing:
        yield f"what is the {who} doing?", (doing,)


def _stated_action(scene: Scene, pick: Pick) -> ChatSample:
    who, doing = _alone(scene), leader(scene.actions, 3)
    if who and doing in UNLIKE:
        yield f"is the {who} {doing}?", ("yes",)
        for other in sorted(UNLIKE[doing] - scene.actions.keys()):
            yield f"is the {who} {other}?", ("no",)


def _there(scene: Scene, pick: Pick) -> ChatSample:
    for thing in SIGHTS:
        seen = shown(scene, thing)
        if seen is not None:
            wordings = ("is there {}?", "is there {} in the picture?", "can you see {}?", "does the picture show {}?")
            yield pick(thing, *wordings).format(thing), ("yes" if seen else "no",)


RULES: tuple[tuple[str, Callable[[Scene, Pick], ChatSample]], ...] = (
    ("number", _counted),
    ("color", _colored),
    ("object", _animal),
    ("object", _worn),
    ("object", _handled),
    ("object", _where),
    ("object", _played),
    ("action", _done),
    ("yes-no", _stated_color),
    ("yes-no", _stated_action),
    ("yes-no", _there),
)
