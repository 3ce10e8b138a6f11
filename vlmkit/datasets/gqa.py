"""GQA (Hudson and Manning, 2019): questions made from scene graphs, the balanced splits of version 1.2.

URLs at downloads.cs.stanford.edu/nlp/data/gqa; sizes, sums and licence were not looked up.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vlmkit.datasets.base import DataSet, File, Split
from vlmkit.io.records import Failed, Record, loads

SITE = "https://downloads.cs.stanford.edu/nlp/data/gqa"
QUESTIONS = File(f"{SITE}/questions1.2.zip", "gqa/questions1.2.zip", unpack="gqa")
PICTURES = File(f"{SITE}/images.zip", "gqa/images.zip", unpack="gqa")


def _records(root: Path, part: str) -> Iterator[Record | Failed]:
    """`category` is the structural type of the question: query, verify, choose, logical, compare."""
    for key, row in loads((root / f"gqa/{part}_balanced_questions.json").read_bytes()).items():
        yield {
            "id": f"gqa-{key}",
            "image": f"gqa/images/{row['imageId']}.jpg",
            "question": row["question"],
            "answers": [row["answer"]],
            "category": row["types"]["structural"],
        }


GQA = DataSet(
    name="gqa",
    what="questions about scenes that take several steps to answer",
    page="https://cs.stanford.edu/people/dorarad/gqa/",
    licence=None,
    used_by=("train instruct", "eval vqa"),
    splits={
        part: Split((QUESTIONS,), partial(_records, part=part), (PICTURES,)) for part in ("train", "val", "testdev")
    },
)
