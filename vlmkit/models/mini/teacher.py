# ruff: noqa: TID253 - this file only helps to make the model
"""Questions about pictures that nobody asked, answered by a teacher, for `mini` to learn from.

DAQUAR asks 9,000 questions about 1,000 rooms: the decoder soon knows these rooms by heart, and little about others.
Regression with a Gaussian kernel, of the answer on the question and on what the image tower sees, gets more right about
rooms that it has not met. So it answers many more questions, and the decoder learns what it says, as in Kim and Rush
(2016), Sequence-level knowledge distillation. About each picture answers a teacher that was told nothing about it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit.models.mini.alike import Questions, picture_vectors
from vlmkit.records import Record
from vlmkit.train.split import share

EACH = 64  # questions about a picture
RIDGE = 0.5
PARTS = 10  # of the pictures; each has a teacher that was told about the others
ALIKE = 5.0  # how much sooner a picture is asked what a picture like it was asked
SWAPPED = 0.5  # of these questions have another thing in them
OFTEN = 5  # times that something is an answer, and stands in questions, to be put in there


class Teacher:
    """Kernel ridge regression with one output for each answer."""

    def __init__(self, vectors: np.ndarray, answers: Sequence[str]) -> None:
        """`vectors` (N, D), of question and picture side by side, and N `answers`."""
        from sklearn.kernel_ridge import KernelRidge

        self._answers, number = np.unique(answers, return_inverse=True)
        given = np.eye(len(self._answers), dtype=np.float32)[number]
        self._model: Any = KernelRidge(alpha=RIDGE, kernel="rbf", gamma=0.5).fit(vectors, given)

    def __call__(self, vectors: np.ndarray) -> list[str]:
        """The likeliest answers to questions (M, D)."""
        return self._answers[self._model.predict(vectors).argmax(1)].tolist()


def taught(asked: Sequence[Record], seed: int) -> Iterator[Record]:
    """{id, image, question, answers}: up to EACH new questions about each picture of `asked`, records of that form."""
    pictures = list(dict.fromkeys(row["image"] for row in asked))
    place = {picture: number for number, picture in enumerate(pictures)}
    about = np.array([place[row["image"]] for row in asked])
    answers = np.array([row["answers"][0] for row in asked])
    texts = [row["question"] for row in asked]
    vectors, seen = Questions(texts), picture_vectors(pictures)
    known = np.hstack([vectors(texts), seen[about]])
    new = list(_new(texts, answers.tolist(), about, seen, seed))
    part = np.array([int(PARTS * share(f"teacher {Path(picture).name}")) for picture in pictures])
    for number in np.unique(part):
        told = part[about] != number
        teacher = Teacher(known[told], answers[told])
        for picture in np.flatnonzero((part == number) & np.array([bool(some) for some in new])):
            some = new[picture]
            said = teacher(np.hstack([vectors(some), np.repeat(seen[[picture]], len(some), 0)]))
            for n, (question, answer) in enumerate(zip(some, said, strict=True)):
                name = f"taught-{Path(pictures[picture]).stem}-{n}"
                yield {"id": name, "image": pictures[picture], "question": question, "answers": [answer]}


def _new(texts: list[str], answers: list[str], about: np.ndarray, seen: np.ndarray, seed: int) -> Iterator[list[str]]:
    """What each picture is asked: what others are, sooner such as look like it, some of it about another thing.

    Nothing that `texts` ask about it.
    """
    rng = np.random.default_rng(seed)
    things = _things(texts, answers)
    old = set(zip(about.tolist(), texts, strict=True))
    for picture, vector in enumerate(seen):
        odds = np.exp(ALIKE * (seen[about] @ vector))
        drawn = (texts[number] for number in rng.choice(len(texts), EACH, p=odds / odds.sum()))
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
