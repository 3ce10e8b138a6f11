"""What captions mention: living beings, clothes and things by class, how many of them, in which colours, doing what.

Rules over small word lists that would rather miss a mention than misread one. English, as in Flickr8k and COCO.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

ANIMALS = {
    "dog": "dog puppy pup hound greyhound retriever shepherd poodle terrier labrador lab collie dalmatian husky beagle "
    "bulldog pitbull doberman rottweiler dachshund spaniel corgi pug chihuahua mutt canine",
    "cat": "cat kitten",
    "horse": "horse pony",
    "cow": "cow calf",
    "bull": "bull",
    "bird": "bird seagull gull pigeon duck goose swan eagle hawk owl parrot heron pelican crane flamingo",
    "sheep": "sheep lamb",
    "goat": "goat",
    "fish": "fish",
    "monkey": "monkey",
    "elephant": "elephant",
    "camel": "camel",
    "rabbit": "rabbit bunny",
    "deer": "deer",
    "seal": "seal",
    "squirrel": "squirrel",
    "butterfly": "butterfly",
}
PEOPLE = {
    "man": "man guy gentleman male father dad groom businessman dude",
    "woman": "woman lady female mother mom bride",
    "boy": "boy",
    "girl": "girl",
    "child": "child kid toddler baby infant",
    "person": "person adult someone somebody teenager teen youth individual skateboarder snowboarder skier surfer biker "
    "cyclist bicyclist motorcyclist player rider climber swimmer hiker runner racer goalie dancer wrestler performer "
    "worker skater jogger batter pitcher fisherman cowboy friend owner trainer parent kayaker diver athlete musician "
    "singer gymnast soldier policeman officer photographer student tourist acrobat clown driver pedestrian "
    "cheerleader juggler windsurfer wakeboarder rollerblader bowler golfer fireman vendor artist guitarist quarterback "
    "cowgirl brother sister couple family crowd group team band audience spectator onlooker bystander others",
}
GROUPS = {"couple", "family", "crowd", "group", "team", "band", "audience", "others"}
CLOTHES = {
    "shirt": "shirt tshirt",
    "jacket": "jacket",
    "coat": "coat",
    "sweater": "sweater",
    "sweatshirt": "sweatshirt hoodie",
    "dress": "dress",
    "skirt": "skirt",
    "hat": "hat",
    "cap": "cap",
    "helmet": "helmet",
    "shorts": "shorts",
    "pants": "pants",
    "jeans": "jeans",
    "swimsuit": "swimsuit",
    "bikini": "bikini",
    "wetsuit": "wetsuit",
    "uniform": "uniform",
    "vest": "vest",
    "suit": "suit",
    "scarf": "scarf",
    "sunglasses": "sunglasses",
    "glasses": "glasses",
    "goggles": "goggles",
    "jersey": "jersey",
    "headband": "headband",
    "backpack": "backpack",
}
PAIRS = {"shorts", "pants", "jeans", "sunglasses", "glasses", "goggles"}
THINGS = {
    "ball": "ball",
    "frisbee": "frisbee",
    "stick": "stick",
    "toy": "toy",
    "bone": "bone",
    "bike": "bike bicycle",
    "motorcycle": "motorcycle motorbike",
    "skateboard": "skateboard",
    "scooter": "scooter",
    "unicycle": "unicycle",
    "surfboard": "surfboard",
    "snowboard": "snowboard",
    "sled": "sled",
    "wave": "wave",
    "car": "car",
    "truck": "truck",
    "bus": "bus",
    "boat": "boat",
    "kayak": "kayak",
    "canoe": "canoe",
    "raft": "raft",
    "slide": "slide",
    "swing": "swing",
    "bench": "bench",
    "couch": "couch sofa",
    "umbrella": "umbrella",
    "balloon": "balloon",
    "bag": "bag",
    "guitar": "guitar",
    "rope": "rope",
    "kite": "kite",
    "book": "book",
    "camera": "camera",
    "cup": "cup",
    "flag": "flag",
    "flower": "flower",
    "racket": "racket",
    "bat": "bat",
    "hoop": "hoop",
    "cellphone": "cellphone phone",
    "microphone": "microphone",
    "leash": "leash",
    "collar": "collar",
    "sign": "sign",
    "house": "house",
    "pole": "pole",
    "pool": "pool",
}
PLURALS = {"man": "men", "woman": "women", "child": "children", "person": "people", "calf": "calves", "goose": "geese"}
PLURALS |= {"businessman": "businessmen", "gentleman": "gentlemen", "fisherman": "fishermen", "scarf": "scarves"}
PLURALS |= {"policeman": "policemen", "fireman": "firemen", "someone": "", "somebody": "", "others": ""}
PLURALS |= {word: "" for word in PAIRS | {"sheep", "fish", "deer"}}

COLORS = {name: name for name in "black white brown red blue green yellow orange pink purple gray tan".split()}
COLORS |= {"grey": "gray", "beige": "tan"}
HUES = set(COLORS) | {"gold", "golden", "silver", "cream", "blond", "blonde", "teal", "turquoise", "maroon", "khaki"}
PATTERNS = set("striped spotted plaid colorful multicolored patterned checkered floral flowered dotted dark".split())
PLAIN = set(
    "small large big little young old older younger wet furry fluffy shaggy tiny huge tall short long light bright "
    "colored haired skinny muddy lean playful happy cute beautiful elderly smiling bearded bald shirtless blond blonde "
    "asian african american teenage male female t soccer tennis dirty fat thin sleeved plastic leather wool denim toy "
    "hairy baseball cowboy winter puffy polo button collared sleeveless tank bathing swim rubber bouncy pretty lone "
    "single wooden inflatable metal rolling barefoot dressed adult baby racing".split()
)
NUMBERS = {word: n for n, word in enumerate("two three four five six seven eight nine ten".split(), 2)}
NUMBERS |= {str(n): n for n in range(2, 11)}
A = {"a", "an", "one", "another", "this", "lone", "single"}
NO = {"no", "without"}
OWNING = {"'s", "shirtless"}
VERBS = {
    "running": "runs running sprinting sprints",
    "jumping": "jumps jumping leaps leaping",
    "swimming": "swims swimming",
    "sitting": "sits sitting seated",
    "standing": "stands standing",
    "walking": "walks walking strolling",
    "climbing": "climbs climbing",
    "sleeping": "sleeps sleeping asleep",
    "lying": "lies lying lays laying",
    "eating": "eats eating",
    "drinking": "drinks drinking",
    "dancing": "dances dancing",
    "reading": "reads reading",
    "swinging": "swinging",
    "sliding": "sliding",
    "surfing": "surfs surfing",
    "skiing": "skiing",
    "snowboarding": "snowboarding snowboards",
    "skateboarding": "skateboarding",
    "digging": "digs digging",
    "smoking": "smokes smoking",
    "singing": "sings singing",
    "fishing": "fishes fishing",
    "hiking": "hikes hiking",
    "diving": "dives diving",
    "kayaking": "kayaks kayaking",
}
# After these an -s form is a noun; before these an -ing form says what a thing is for.
NOT_VERB_AFTER = set("the a an of in on over at some several two three with by their his her its colorful his".split())
NOT_VERB_BEFORE = set(
    "pool pools suit suits trunks track wall pole poles boat boats rod stick path trail area room gear shoes shorts "
    "equipment board cap goggles net line machine clothes clothing outfit costume surface ramp poster hole tube suit "
    "harness rope wave waves water".split()
)
VERBISH = set("slide slides swing swings wave waves bike bikes skateboards kayaks".split())  # `girls slide down`

WORDS = re.compile(r"[a-z0-9]+|'s|[,.]")


class Mention(NamedTuple):
    """A thing of class `name`: how many (None: several, or unclear), its colours, whether that is all of its look."""

    name: str
    count: int | None
    colors: frozenset[str]
    plain: bool  # no pattern, and no colour without a common name
    known: bool  # `the dog`: perhaps mentioned before
    at: int  # which word


def words(caption: str) -> list[str]:
    """The words of a caption in lower case, commas and full stops among them."""
    return WORDS.findall(caption.lower().replace("t-shirt", "tshirt").replace("t shirt", "tshirt"))


@cache
def lexicon() -> dict[str, tuple[str, bool]]:
    """(class, plural) of each noun."""
    found = {}
    for table in (ANIMALS, PEOPLE, CLOTHES, THINGS):
        for name, singles in table.items():
            for word in singles.split():
                found.setdefault(word, (name, word in GROUPS))
                found.setdefault(plural(word), (name, True))
    found.pop("", None)
    return found


def plural(word: str) -> str:
    """The plural of a noun of the lists; empty where it has none of its own."""
    if word in PLURALS:
        return PLURALS[word]
    if word.endswith(("ch", "sh", "s", "x")):
        return f"{word}es"
    return f"{word[:-1]}ies" if word.endswith("y") and word[-2] not in "aeiou" else f"{word}s"


def mentions(caption: list[str]) -> Iterator[Mention]:
    """What the words of a caption mention, in order."""
    nouns = lexicon()
    for at, word in enumerate(caption):
        if word not in nouns:
            continue
        after = caption[at + 1] if at + 1 < len(caption) else "."
        name, several = nouns[word]
        if after in nouns and after not in VERBISH:  # the dog of `dog toy`
            continue
        if word == "bike" and caption[at - 1 : at] == ["dirt"]:
            name = "motorcycle"
        mention = _phrase(caption, at, name, several)
        if mention is not None:
            yield mention._replace(count=None) if after == "'s" else mention


def _phrase(caption: list[str], at: int, name: str, several: bool) -> Mention | None:
    """The noun at `at` with what stands before it; None where it is said not to be there."""
    colors: set[str] = set()
    plain = True
    start = at - 1
    while start >= 0:
        word = caption[start]
        if word in HUES:
            if word in COLORS:
                colors.add(COLORS[word])
            else:
                plain = False
        elif word in PATTERNS:
            plain = False
        elif word not in PLAIN and not (
            word in ("and", ",") and caption[start - 1 : start] and caption[start - 1] in HUES | PATTERNS | PLAIN
        ):
            break
        start -= 1
    before = caption[start] if start >= 0 else ""
    if before in NO:
        return None
    count = NUMBERS.get(before) if several else 1
    # `a black and a white dog` are two.
    if before in A and caption[max(0, start - 1) : start] == ["and"] and caption[max(0, start - 2)] in HUES:
        count = None
    return Mention(name, count, frozenset(colors), plain, before == "the", at)


def actions(caption: list[str]) -> set[str]:
    """What is done in a caption, as `running`."""
    found = set()
    for at, word in enumerate(caption):
        doing = _verbs().get(word)
        before = caption[at - 1] if at else ""
        after = caption[at + 1] if at + 1 < len(caption) else "."
        if doing and after not in NOT_VERB_BEFORE and not (word.endswith("s") and before in NOT_VERB_AFTER):
            found.add(doing)
    return found


@cache
def _verbs() -> dict[str, str]:
    return {word: doing for doing, forms in VERBS.items() for word in forms.split()}
