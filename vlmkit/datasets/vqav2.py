"""VQA v2 (Goyal and others, 2017): ten answers to each question about COCO 2014 photographs.

URLs as visualqa.org gives them (S3, cvmlp/vqa/mscoco/vqa), licence as on its page terms.html; sizes and sums were not
looked up.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vlmkit.datasets.base import DataSet, File, Split
from vlmkit.datasets.coco import photo, pictures, single
from vlmkit.io.records import Failed, Record, loads

SITE = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"


def _records(root: Path, name: str) -> Iterator[Record | Failed]:
    """`category` is the answer type by which results are reported: yes/no, number, other."""
    folder = root / "vqav2"
    questions = loads((folder / f"v2_OpenEnded_mscoco_{name}_questions.json").read_bytes())["questions"]
    annotations = loads((folder / f"v2_mscoco_{name}_annotations.json").read_bytes())["annotations"]
    by_question = {found["question_id"]: found for found in annotations}
    for question in questions:
        key = question["question_id"]
        if (found := by_question.get(key)) is None:
            yield Failed(f"vqav2-{key}", None, "a question without answers")
            continue
        yield {
            "id": f"vqav2-{key}",
            "image": photo(name, question["image_id"]),
            "question": question["question"],
            "answers": [answer["answer"] for answer in found["answers"]],
            "category": found["answer_type"],
            "question_type": found["question_type"],
        }


def _split(part: str) -> Split:
    names = [f"v2_{kind}_{part.title()}_mscoco.zip" for kind in ("Questions", "Annotations")]
    files = tuple(File(f"{SITE}/{name}", f"vqav2/{name}", unpack="vqav2") for name in names)
    name = f"{part}2014"
    return Split(files, partial(_records, name=name), (pictures(name),), single)


VQAV2 = DataSet(
    name="vqav2",
    what="questions about COCO photographs, ten answers each",
    page="https://visualqa.org",
    licence="annotations CC BY 4.0, photographs under the terms of Flickr",
    used_by=("train instruct", "eval vqa"),
    splits={part: _split(part) for part in ("train", "val")},
)
