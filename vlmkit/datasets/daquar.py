"""DAQUAR (Malinowski and Fritz, 2014), the questions about 37 classes of things in rooms of NYU Depth v2.

Questions from github.com/jayantk/lsp (data/daquar/reduced), photographs from the authors' server; sizes, sums and
licence were not looked up.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vlmkit.datasets.base import DataSet, File, Split
from vlmkit.io.records import Failed, Record

SITE = "https://raw.githubusercontent.com/jayantk/lsp/master/data/daquar/reduced"
PICTURES = File(
    "http://datasets.d2.mpi-inf.mpg.de/mateusz14visual-turing/nyu_depth_images.tar",
    "daquar/nyu_depth_images.tar",
    unpack="daquar",
)
FILES = {"train": "qa.37.raw.train.txt", "test": "qa.37.raw.reduced.test.txt"}
WHERE = re.compile(r"(\s+(?:in|on|of))?\s+(?:the\s+)?(image\d+)\s*\?\s*$")


def _records(root: Path, part: str) -> Iterator[Record | Failed]:
    """Questions and answers alternate line by line; a question ends in the name of its picture."""
    name = FILES[part]
    lines = (root / "daquar" / name).read_text().splitlines()
    asked: Counter[str] = Counter()
    for number in range(0, len(lines) - 1, 2):
        question, answer = lines[number].strip(), lines[number + 1].strip()
        where = WHERE.search(question)
        if where is None or not answer:
            yield Failed(f"{name}:{number + 1}", None, "no picture is named, or no answer given")
            continue
        image = where[2]
        asked[image] += 1
        yield {
            "id": f"{image}-q{asked[image]}",
            "image": f"daquar/nyu_depth_images/{image}.png",
            "question": question[: where.start()],
            "answers": [answer],
        }


DAQUAR = DataSet(
    name="daquar",
    what="questions about the things in photographs of rooms",
    page="https://www.mpi-inf.mpg.de/departments/computer-vision-and-machine-learning",
    licence=None,
    used_by=("train instruct", "eval vqa"),
    splits={
        part: Split((File(f"{SITE}/{name}", f"daquar/{name}"),), partial(_records, part=part), (PICTURES,))
        for part, name in FILES.items()
    },
)
