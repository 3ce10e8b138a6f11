"""POPE (Li and others, 2023): is there a … in the image? 500 COCO val2014 photographs, three ways to choose the …

The questions come from the authors' repository at one commit, as llava's evaluation fetches them; size, sums and
licence were not looked up. The photographs are fetched one by one.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vlmkit.datasets.base import DataSet, File, Split
from vlmkit.datasets.coco import single
from vlmkit.io.records import Failed, Record, read_jsonl

COMMIT = "e3e39262c85a6a83f26cf5094022a782cb0df58d"
SITE = f"https://raw.githubusercontent.com/AoiDragon/POPE/{COMMIT}/output/coco"


def _records(root: Path, part: str) -> Iterator[Record | Failed]:
    with open(root / f"pope/coco_pope_{part}.json", "rb") as lines:
        for row in read_jsonl(lines, f"coco_pope_{part}.json"):
            yield (
                row
                if isinstance(row, Failed)
                else {
                    "id": f"pope-{part}-{row['question_id']}",
                    "image": f"coco/val2014/{row['image']}",
                    "question": row["text"],
                    "answers": [row["label"]],
                    "category": part,
                }
            )


def _split(part: str) -> Split:
    name = f"coco_pope_{part}.json"
    return Split((File(f"{SITE}/{name}", f"pope/{name}"),), partial(_records, part=part), single=single)


POPE = DataSet(
    name="pope",
    what="is there such a thing on the picture? 3,000 questions a split that show hallucination",
    page="https://github.com/AoiDragon/POPE",
    licence=None,
    used_by=("eval pope",),
    splits={part: _split(part) for part in ("random", "popular", "adversarial")},
)
