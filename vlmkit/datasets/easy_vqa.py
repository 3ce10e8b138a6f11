"""easy-VQA (Zhou, 2019, MIT): 5,000 drawings of one coloured shape and 48,248 questions, out of its PyPI package."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from vlmkit.errors import VlmkitError
from vlmkit.records import Record, loads

COLORS = {"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"}


def installed() -> Path:
    """The data of the installed package `easy-vqa`. Raises VlmkitError."""
    found = find_spec("easy_vqa")
    if found is None or found.origin is None:
        raise VlmkitError("easy-vqa is not installed", "pip install easy-vqa")
    return Path(found.origin).parent / "data"


def easy_vqa(split: Literal["train", "test"], folder: Path | None = None) -> Iterator[Record]:
    """{id, image, question, answers, category} of `split` in its order; `folder` is the package's `data`."""
    folder = (folder or installed()).absolute() / split
    for number, (question, answer, picture) in enumerate(loads((folder / "questions.json").read_bytes())):
        yield {
            "id": f"easy-vqa-{split}-{number}",
            "image": str(folder / "images" / f"{picture}.png"),
            "question": question,
            "answers": [answer],
            "category": "color" if answer in COLORS else "yes-no" if answer in ("yes", "no") else "shape",
        }
