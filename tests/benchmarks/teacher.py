"""How hard each tenth of DAQUAR's pictures is for the teacher of `mini`, which learned from the others only:

    python tests/benchmarks/teacher.py QUESTIONS.jsonl

Exact answers with the pictures and by the words alone; the first tenth is what `mini` is measured on. Eight minutes.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vlmkit.io.inputs import records_of
from vlmkit.metrics import vqa_normalize
from vlmkit.recipes.mini.data import DAQUAR_DEV
from vlmkit.recipes.mini.kernels import Questions, picture_vectors
from vlmkit.recipes.mini.pseudo_labels import Teacher
from vlmkit.train.data.mixture import share


def right(alike: np.ndarray, part: np.ndarray, answers: np.ndarray) -> Iterator[np.ndarray]:
    """Of each part, in order, which answers a teacher that learned from the others gets right."""
    for number in range(part.max() + 1):
        known, asked = part != number, part == number
        said = Teacher(alike[np.ix_(known, known)], answers[known].tolist())(alike[np.ix_(asked, known)])
        yield np.array([vqa_normalize(a) == vqa_normalize(b) for a, b in zip(said, answers[asked], strict=True)])


def main() -> None:
    rows = list(records_of([sys.argv[1]]))
    pictures = list(dict.fromkeys(row["image"] for row in rows))
    place = {picture: number for number, picture in enumerate(pictures)}
    about = np.array([place[row["image"]] for row in rows])
    part = np.array([int(share(Path(picture).name) / DAQUAR_DEV) for picture in pictures])[about]
    answers = np.array([row["answers"][0] for row in rows])
    texts = [row["question"] for row in rows]
    words, seen = np.exp(Questions(texts)(texts) - 1), picture_vectors(pictures)
    found = right(words * np.exp(seen @ seen.T - 1)[np.ix_(about, about)], part, answers), right(words, part, answers)
    print("tenth questions  exact  words")
    for number, both in enumerate(zip(*found, strict=True)):
        print(f"{number:5} {len(both[0]):9}" + "".join(f"{each.mean():7.1%}" for each in both), flush=True)


if __name__ == "__main__":
    main()
