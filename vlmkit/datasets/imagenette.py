"""Imagenette 2 (Howard, 2019): ten classes of ImageNet that are easy to tell apart, shorter side 320 pixels.

URL, size and SHA-256 as tensorflow_datasets records them (datasets/imagenette/checksums.tsv), the names of the classes
from github.com/fastai/imagenette; the licence of the photographs is that of ImageNet and was not looked up.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vlmkit.datasets.base import DataSet, File, Split
from vlmkit.io.records import Failed, Record

ARCHIVE = File(
    "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
    "imagenette/imagenette2-320.tgz",
    341663724,
    "sha256:569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c",
    unpack="imagenette",
)
CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def _records(root: Path, part: str) -> Iterator[Record | Failed]:
    for folder, label in CLASSES.items():
        for path in sorted((root / "imagenette/imagenette2-320" / part / folder).glob("*.JPEG")):
            image = f"imagenette/imagenette2-320/{part}/{folder}/{path.name}"
            yield {"id": f"imagenette-{part}-{path.stem}", "image": image, "answers": [label]}


IMAGENETTE = DataSet(
    name="imagenette",
    what="photographs of ten kinds of things; the kind is in answers",
    page="https://github.com/fastai/imagenette",
    licence=None,
    used_by=("classify", "eval classify"),
    splits={part: Split((ARCHIVE,), partial(_records, part=part)) for part in ("train", "val")},
)
