"""Questions and answers made from captions by rule: colour, number, object, yes and no.

What several captions of a picture say and none contradicts is asked. Text alone shall not give answers away: of each
yes-no question as many pictures have yes as no, and no other answer has more than half of its question's pictures.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from vlmkit.records import Record
from vlmkit.train.mentions import ANIMALS, CLOTHES, PAIRS, PEOPLE, THINGS, plural, words
from vlmkit.train.presence import THERE, shown
from vlmkit.train.scene import FIGURES, Scene
from vlmkit.train.split import share

Pick = Callable[..., str]
Asked = Iterator[tuple[str, tuple[str, ...]]]  # (question, answers, the best one first)

# Clothes that one captioner calls so and another so: their colours must agree.
WORN = (
    {"shirt", "jacket", "coat", "sweater", "sweatshirt", "vest", "jersey", "uniform", "suit", "wetsuit"},
    {"hat", "cap", "helmet"},
    {"shorts", "pants", "jeans"},
    {"dress", "skirt"},
    {"swimsuit", "bikini"},
)
MOUTH = {"ball", "frisbee", "stick", "toy", "bone", "rope", "bird"}
RIDDEN = {"bike", "motorcycle", "skateboard", "scooter", "unicycle", "horse", "bull", "wave", "sled", "boat", "raft"}
RIDES = {"rides", "riding", "ride"}
HELD = {"holds", "holding", "carries", "carrying"}
HOLDABLE = set("ball stick frisbee umbrella balloon bag guitar book camera cup flag flower sign racket bat".split())
HOLDABLE |= {"rope", "surfboard", "skateboard", "snowboard", "cellphone", "microphone", "kite", "dog", "bird", "fish"}
# Colours that people call by each other's names: no question asks whether one is the other.
ALIKE = {
    "black": {"brown", "gray", "blue"},
    "white": {"tan", "gray", "yellow"},
    "brown": {"tan", "orange", "red", "yellow", "black"},
    "red": {"pink", "orange", "brown", "purple"},
    "blue": {"purple", "gray", "black", "green"},
    "green": {"yellow", "blue"},
    "yellow": {"orange", "tan", "green", "white", "brown"},
    "orange": {"red", "yellow", "brown", "pink", "tan"},
    "pink": {"red", "purple", "orange", "white"},
    "purple": {"pink", "blue", "red"},
    "gray": {"white", "black", "blue", "tan"},
    "tan": {"brown", "white", "yellow", "orange", "gray"},
}
# What someone who does the one surely does not do.
UNLIKE = {
    "running": {"sitting", "sleeping", "lying", "swimming"},
    "jumping": {"sitting", "sleeping", "lying", "walking"},
    "swimming": {"sitting", "sleeping", "standing", "walking"},
    "sitting": {"running", "jumping", "walking", "swimming", "standing"},
    "sleeping": {"running", "jumping", "walking", "swimming", "standing"},
    "standing": {"sitting", "sleeping", "lying", "swimming"},
    "walking": {"sitting", "sleeping", "lying", "jumping", "swimming"},
    "climbing": {"sitting", "sleeping", "lying", "swimming"},
}


class Question(NamedTuple):
    """One candidate, before balancing."""

    number: int  # which record
    text: str
    answers: tuple[str, ...]
    category: str


def questions(records: Iterable[Record], seed: int = 0) -> Iterator[Record]:
    """{id, image, question, answers, category} for the records with captions, in their order.

    A pure function of records and seed.
    """
    rows = [row for row in records if row.get("captions")]
    candidates = [q for number, row in enumerate(rows) for q in _asked(number, row, seed)]
    asked: dict[int, list[Question]] = defaultdict(list)
    for question in _balanced(candidates, rows, seed):
        asked[question.number].append(question)
    for number, row in enumerate(rows):
        for i, question in enumerate(sorted(asked[number], key=lambda q: (q.category, q.text)), 1):
            fields = {"question": question.text, "answers": list(question.answers), "category": question.category}
            yield {"id": f"{row['id']}-q{i}", "image": row["image"], **fields}


def _balanced(candidates: list[Question], rows: list[Record], seed: int) -> Iterator[Question]:
    by_text: dict[str, dict[str, list[Question]]] = defaultdict(lambda: defaultdict(list))
    for question in candidates:
        by_text[question.text][question.answers[0]].append(question)
    for text, by_answer in by_text.items():
        for some in by_answer.values():
            some.sort(key=lambda q: share(f"{seed} {rows[q.number]['id']} {text}"))
        if by_answer.keys() <= {"yes", "no"}:
            least = min(len(by_answer["yes"]), len(by_answer["no"]))
            limits = dict.fromkeys(by_answer, least)
        else:
            total = sum(map(len, by_answer.values()))
            limits = {answer: total - len(some) for answer, some in by_answer.items()}
        for answer, some in by_answer.items():
            yield from some[: limits[answer]]


def _asked(number: int, row: Record, seed: int) -> Iterator[Question]:
    scene = Scene([words(caption) for caption in row["captions"]])

    def pick(kind: str, *wordings: str) -> str:
        """One of the wordings, always the same one for this picture and kind."""
        return wordings[int(share(f"{seed} {row['id']} {kind}") * len(wordings))]

    for category, rule in RULES:
        for text, answers in rule(scene, pick):
            yield Question(number, text, answers, category)


def _counted(scene: Scene, pick: Pick) -> Asked:
    people = 1 if scene.person else scene.several(PEOPLE)
    if people:
        yield pick("people", "how many people are there?", "how many people are in the picture?"), (str(people),)
    for name in [*ANIMALS, "man", "woman", "boy", "girl"]:
        many = plural(name)
        animal = name in ANIMALS
        total = 1 if animal and scene.one([name], 3) else scene.several([name])
        if total and not (scene.words & FIGURES) and (animal or total == people):
            yield pick(name, f"how many {many} are there?", f"how many {many} are in the picture?"), (str(total),)


def _colors(scene: Scene) -> Iterator[tuple[str, str]]:
    """(thing, colour) of what the picture has one of."""
    if scene.animal and scene.one([scene.animal], 3) and (color := scene.color(scene.animal, 2)):
        yield scene.animal, color
    if scene.person:
        for some in WORN:
            found = [(name, scene.color(name, 1)) for name in sorted(some) if scene.named([name])]
            if len({color for _, color in found}) == 1 and found[0][1]:
                yield found[0][0], found[0][1]
    for name in THINGS:
        if (scene.count([name]) or (0, 0)) >= (1, 2) and (color := scene.color(name, 1)):
            yield name, color


def _colored(scene: Scene, pick: Pick) -> Asked:
    for name, color in _colors(scene):
        verb = "are" if name in PAIRS else "is"
        whose = f"{scene.person}'s {name}" if name in CLOTHES else name
        yield pick(name, f"what color {verb} the {name}?", f"what color {verb} the {whose}?"), (color,)


def _told_color(scene: Scene, pick: Pick) -> Asked:
    for name, color in _colors(scene):
        verb = "are" if name in PAIRS else "is"
        if color in ALIKE:
            yield f"{verb} the {name} {color}?", ("yes",)
            for other in ALIKE.keys() - ALIKE[color] - {color}:
                yield f"{verb} the {name} {other}?", ("no",)


def _animal(scene: Scene, pick: Pick) -> Asked:
    if scene.animal and len(scene.named([scene.animal])) >= 3:
        wordings = ("what animal is in the picture?", "what animal is this?", "what kind of animal is shown?")
        yield pick("animal", *wordings), (scene.animal,)


def _worn(scene: Scene, pick: Pick) -> Asked:
    found = Counter({name: len(scene.named([name])) for name in CLOTHES})
    sure = [(name, count) for name, count in found.most_common() if count >= 2]
    if scene.person and sure:
        yield f"what is the {scene.person} wearing?", tuple(name for name, count in sure for _ in range(count))[:10]


def _handled(scene: Scene, pick: Pick) -> Asked:
    """What is ridden, held, or carried in the mouth."""
    if scene.person:
        if ridden := _object(scene, RIDES, RIDDEN):
            yield f"what is the {scene.person} riding?", (ridden,)
        if held := _object(scene, HELD, HOLDABLE):
            yield f"what is the {scene.person} holding?", (held,)
    if scene.animal == "dog" and scene.one(["dog"], 3):
        carried = Counter(
            m.name
            for some, caption in zip(scene.mentions, scene.captions, strict=True)
            if "mouth" in caption
            for m in some
            if m.name in MOUTH
        )
        if len(carried) == 1 and carried.total() >= 2:
            yield pick("mouth", "what is in the dog's mouth?", "what is the dog carrying?"), tuple(carried)


def _object(scene: Scene, verbs: set[str], things: set[str]) -> str | None:
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


def _alone(scene: Scene) -> str | None:
    """The only living being of the picture."""
    if scene.person and not scene.named(ANIMALS):
        return scene.person
    if scene.animal and scene.one([scene.animal], 3) and not scene.named(PEOPLE):
        return scene.animal
    return None


def _doing(scene: Scene) -> str | None:
    (first, most), (_, next_most) = [*scene.actions.most_common(2), ("", 0), ("", 0)][:2]
    return first if most >= 3 and most > next_most else None


def _done(scene: Scene, pick: Pick) -> Asked:
    who, doing = _alone(scene), _doing(scene)
    if who and doing:
        yield f"what is the {who} doing?", (doing,)


def _told_action(scene: Scene, pick: Pick) -> Asked:
    who, doing = _alone(scene), _doing(scene)
    if who and doing in UNLIKE:
        yield f"is the {who} {doing}?", ("yes",)
        for other in sorted(UNLIKE[doing] - scene.actions.keys()):
            yield f"is the {who} {other}?", ("no",)


def _there(scene: Scene, pick: Pick) -> Asked:
    for thing in THERE:
        seen = shown(scene, thing)
        if seen is not None:
            wordings = ("is there {}?", "is there {} in the picture?", "can you see {}?", "does the picture show {}?")
            yield pick(thing.asked, *wordings).format(thing.asked), ("yes" if seen else "no",)


RULES: tuple[tuple[str, Callable[[Scene, Pick], Asked]], ...] = (
    ("number", _counted),
    ("color", _colored),
    ("object", _animal),
    ("object", _worn),
    ("object", _handled),
    ("action", _done),
    ("yes-no", _told_color),
    ("yes-no", _told_action),
    ("yes-no", _there),
)
