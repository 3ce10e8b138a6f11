"""What a picture surely shows or surely does not, by its captions: things that people mention where they see them."""

from vlmkit.recipes.mini.caption_questions.scene import Scene
from vlmkit.recipes.mini.caption_questions.wordlists import ANIMALS, LISTS, PEOPLE, SIGHTS

NONE: frozenset[str] = frozenset()


def shown(scene: Scene, asked: str) -> bool | None:
    """Whether the picture shows `asked`, one of SIGHTS; None where its captions leave that open."""
    sight = SIGHTS[asked]
    classes, possible = sight.get("classes", NONE), sight["possible"]
    if "words" in sight:
        mentioned = sum(not sight["words"].isdisjoint(caption) for caption in scene.captions)
    else:
        mentioned = len(scene.named(classes))
    if mentioned >= 2:
        figure = scene.words & LISTS["figures"] and classes & (ANIMALS.keys() | PEOPLE.keys())
        return None if figure or mentioned <= _others(scene, classes, sight.get("rivals", NONE)) else True
    left_open = mentioned or scene.words & possible or scene.named(possible)
    return None if left_open else False


def _others(scene: Scene, classes: frozenset[str], rivals: frozenset[str]) -> int:
    """The captions that tell of a rival and of none of the classes."""
    names = [{mention.name for mention in caption} for caption in scene.mentions]
    return sum(bool(some & rivals) and not some & classes for some in names)
