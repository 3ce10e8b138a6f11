"""TextVQA 0.5.1 (Singh and others, 2019): questions that need the text in Open Images photographs, ten answers each.

URLs as textvqa.org gives them (dl.fbaipublicfiles.com); sizes, sums and licence were not looked up.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vlmkit.datasets.base import DataSet, File, Split
from vlmkit.io.records import Failed, Record, loads

SITE = "https://dl.fbaipublicfiles.com/textvqa"
PICTURES = File(f"{SITE}/images/train_val_images.zip", "textvqa/train_val_images.zip", unpack="textvqa")


def _records(root: Path, part: str) -> Iterator[Record | Failed]:
    for row in loads((root / f"textvqa/TextVQA_0.5.1_{part}.json").read_bytes())["data"]:
        yield {
            "id": f"textvqa-{row['question_id']}",
            "image": f"textvqa/train_images/{row['image_id']}.jpg",
            "question": row["question"],
            "answers": row["answers"],
        }


def _split(part: str) -> Split:
    name = f"TextVQA_0.5.1_{part}.json"
    return Split((File(f"{SITE}/data/{name}", f"textvqa/{name}"),), partial(_records, part=part), (PICTURES,))


TEXTVQA = DataSet(
    name="textvqa",
    what="questions about the text in photographs, ten answers each",
    page="https://textvqa.org",
    licence=None,
    used_by=("train instruct", "eval vqa --variant textvqa"),
    splits={part: _split(part) for part in ("train", "val")},
)
