"""Questions about pictures that nobody asked, answered by a teacher, for `mini` to learn from.

DAQUAR asks 9,000 questions about 1,000 rooms: the decoder soon knows these rooms by heart, and little about others.
Regression with a Gaussian kernel, of the answer on the question and on what the image tower sees, gets more right about
rooms that it has not met. So it answers many more questions, and the decoder learns what it says, as in Kim and Rush
(2016), Sequence-level knowledge distillation. About each picture answers a teacher that never saw it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit.io.images import open_picture
from vlmkit.io.records import Record
from vlmkit.io.sources import open_source
from vlmkit.recipes.mini.kernels import Questions, picture_vectors
from vlmkit.train.data.mixture import share

SIDES = 0.6, 0.9  # of a crop, as shares of the picture's
RIDGE = 0.5
PARTS = 10  # of the pictures; each has a teacher that learned from the others
ALIKE = 5.0  # how much sooner a picture is asked what a picture like it was asked
SWAPPED = 0.5  # of these questions have another thing in them
OFTEN = 5  # times that something is an answer, and stands in questions, to be put in there


class Teacher:
    """Kernel ridge regression with one output for each answer."""

    def __init__(self, alike: np.ndarray, answers: Sequence[str]) -> None:
        """`alike` (N, N), the kernel of what is known, and N `answers`."""
        from sklearn.kernel_ridge import KernelRidge

        self._answers, number = np.unique(answers, return_inverse=True)
        given = np.eye(len(self._answers), dtype=np.float32)[number]
        self._model: Any = KernelRidge(alpha=RIDGE, kernel="precomputed").fit(alike, given)

    def __call__(self, alike: np.ndarray) -> list[str]:
        """The likeliest answers to M questions, by their kernel (M, N) with what is known."""
        return self._answers[self._model.predict(alike).argmax(1)].tolist()


def pseudo_label(asked: Sequence[Record], folder: Path, seed: int, *, each: int, crops: int) -> Iterator[Record]:
    """{id, image, question, answers}: up to `each` new questions about each picture of `asked`, records of that form.

    And about so many `crops` of it, which are written into `folder` and count as pictures of their own. About half of
    the questions end with a question mark: DAQUAR has none, and people write one.
    """
    originals = list(dict.fromkeys(row["image"] for row in asked))
    place = {picture: number for number, picture in enumerate(originals)}
    about = np.array([place[row["image"]] for row in asked])
    answers = np.array([row["answers"][0] for row in asked])
    texts = [row["question"] for row in asked]
    pictures = originals + [crop for picture in originals for crop in _cropped(picture, folder, crops, seed)]
    part = np.array([int(PARTS * share(f"teacher {Path(picture).name}")) for picture in originals])
    part = np.concatenate([part, part.repeat(crops)])
    questions, seen = Questions(texts), picture_vectors(pictures)
    near = np.exp(seen @ seen[: len(originals)].T - 1)
    known = np.exp(questions(texts) - 1) * near[np.ix_(about, about)]
    new = list(_new(texts, answers.tolist(), about, seen, each, seed))
    for number in np.unique(part):
        known_rows = np.flatnonzero(part[about] != number)
        teacher = Teacher(known[np.ix_(known_rows, known_rows)], answers[known_rows].tolist())
        for some in np.array_split(np.flatnonzero(part == number), PARTS):
            here = [(picture, text) for picture in some for text in new[picture]]
            if not here:
                continue
            shown, text = zip(*here, strict=True)
            alike = np.exp(questions(text)[:, known_rows] - 1) * near[np.ix_(shown, about[known_rows])]
            for n, (picture, question, answer) in enumerate(zip(shown, text, teacher(alike), strict=True)):
                name = f"taught-{Path(pictures[picture]).stem}-{n}"
                written = question + "?" * (n % 2)
                yield {"id": name, "image": pictures[picture], "question": written, "answers": [answer]}


def _cropped(picture: str, folder: Path, crops: int, seed: int) -> Iterator[str]:
    folder.mkdir(parents=True, exist_ok=True)
    image = open_picture(open_source(picture))[0]
    for n in range(crops):
        rng = np.random.default_rng([seed, n, *Path(picture).name.encode()])
        size = rng.uniform(*SIDES, 2) * image.size
        left, top = rng.uniform(0, 1, 2) * (image.size - size)
        path = folder / f"{Path(picture).stem}-crop{n}.jpg"
        image.crop((left, top, left + size[0], top + size[1])).save(path, quality=95)
        yield str(path)


def _new(
    texts: list[str], answers: list[str], about: np.ndarray, seen: np.ndarray, each: int, seed: int
) -> Iterator[list[str]]:
    """What each picture is asked: what others are, sooner such as look like it, some of it about another thing.

    Nothing that `texts` ask about it.
    """
    rng = np.random.default_rng(seed)
    things = _things(texts, answers)
    old = set(zip(about.tolist(), texts, strict=True))
    for picture, vector in enumerate(seen):
        odds = np.exp(ALIKE * (seen[about] @ vector))
        drawn = (texts[number] for number in rng.choice(len(texts), each, p=odds / odds.sum()))
        found = (_swapped(text, things, rng) if rng.random() < SWAPPED else text for text in drawn)
        yield [text for text in dict.fromkeys(found) if (picture, text) not in old]


def _things(texts: list[str], answers: list[str]) -> dict[str, float]:
    """How often it is asked about each thing that is also an answer, to the power of 3/4."""
    asked = Counter(word for text in texts for word in text.split())
    given = Counter(part for answer in answers for part in answer.split(", "))
    common = [part for part, count in given.items() if min(count, asked[part]) >= OFTEN and part.isalpha()]
    return {part: asked[part] ** 0.75 for part in sorted(common)}


def _swapped(text: str, things: dict[str, float], rng: np.random.Generator) -> str:
    words = text.split()
    places = [n for n, word in enumerate(words) if word in things]
    if places:
        odds = np.array(list(things.values()))
        words[rng.choice(places)] = str(rng.choice(list(things), p=odds / odds.sum()))
    return " ".join(words)
