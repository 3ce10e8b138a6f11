"""easy-VQA (Zhou, 2019): 5,000 drawings of one coloured shape and 48,248 questions, out of its PyPI package.

Size and SHA-256 are those of the wheel easy_vqa-1.0-py3-none-any.whl, the licence (MIT) is that of its metadata.
"""

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from vlmkit.datasets.base import DataSet, File, Split
from vlmkit.errors import VlmkitError
from vlmkit.io.records import Failed, Record, loads

WHEEL = File(
    "pypi:easy-vqa==1.0",
    "easy-vqa/easy_vqa-1.0-py3-none-any.whl",
    3215672,
    "sha256:fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    unpack="easy-vqa",
)
PARTS: tuple[Literal["train", "test"], ...] = ("train", "test")
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


def _records(root: Path, part: Literal["train", "test"]) -> Iterator[Record | Failed]:
    for record in easy_vqa(part, root / "easy-vqa/easy_vqa/data"):
        yield {**record, "image": str(Path(record["image"]).relative_to(root.absolute()))}


EASY_VQA = DataSet(
    name="easy-vqa",
    what="drawings of one coloured shape, and easy questions about them",
    page="https://pypi.org/project/easy-vqa/",
    licence="MIT",
    used_by=("train instruct", "eval vqa"),
    splits={part: Split((WHEEL,), partial(_records, part=part)) for part in PARTS},
)
